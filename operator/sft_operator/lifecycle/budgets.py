"""What an attempt's end costs, and whether another may follow: counters in, counters and verdict out.

Called by `decide` once for each attempt, when its end is recorded.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

from sftjob.failure import DISRUPTIONS, NEVER_RETRIED, SHORTAGES, Reason, Verdict
from sftjob.spec import SFTJobSpec
from sftjob.status import HISTORY_LIMIT, AttemptRecord, AttemptsStatus
from sftjob.words import counted

NO_PROGRESS_LIMIT = 3
"""Attempts in a row without a newer checkpoint that end a job."""
OLD_MESSAGE_CHARACTERS, OLD_TAIL_CHARACTERS = 400, 200
"""What is kept of an attempt that is not the newest any more."""
AVOIDED_LIMIT = 8
"""Nodes that a job stays away from at once."""


@dataclass(frozen=True)
class Failure:
    """Why no further attempt follows: reason and message of the condition Failed."""

    reason: str
    message: str


def account(
    attempts: AttemptsStatus, record: AttemptRecord, *, is_requested: bool, running_seconds: int
) -> AttemptsStatus:
    """The counters after this end, of an attempt that ran for that long. A requested suspension costs nothing.

    An attempt that never ran as a whole could save nothing, nor could one whose node has no GPU that works to begin
    with: they say nothing about progress. A pre-flight that found everything ready costs nothing, and memory that was
    too small for one before it says nothing of training.
    """
    is_newer = _has_saved_more(record, before=attempts.saved_step or 0)
    is_success, has_prepared = record.reason is Reason.SUCCEEDED, record.reason is Reason.PREPARED
    is_fault = not is_success and not has_prepared and record.reason is not Reason.DEADLINE_EXCEEDED
    is_counted = is_fault and not is_requested
    is_disruption = record.reason in DISRUPTIONS
    had_no_gpu = record.reason is Reason.GPU_FAULT and record.exit_code is None
    is_idle = is_counted and record.reason is not Reason.NOT_STARTED and not had_no_gpu
    avoided = attempts.avoided_nodes
    if record.reason is Reason.GPU_FAULT and record.node is not None:
        avoided = [record.node, *(node for node in avoided if node != record.node)][:AVOIDED_LIMIT]
    return attempts.model_copy(
        update={
            "failures": attempts.failures + (is_counted and not is_disruption),
            "disruptions": attempts.disruptions + (is_counted and is_disruption),
            "shortages": 0 if has_prepared else attempts.shortages + (is_counted and record.reason in SHORTAGES),
            "prepared": record.number if has_prepared else attempts.prepared,
            "without_progress": 0 if is_newer or is_success else attempts.without_progress + is_idle,
            "saved_step": attempts.saved_step if record.saved_step is None else record.saved_step,
            "running_since": None,
            "running_seconds": attempts.running_seconds + running_seconds,
            "avoided_nodes": avoided,
            "ending": None,
            "noticed_at": None,
            "history": [record, *map(_abridged, attempts.history)][:HISTORY_LIMIT],
        }
    )


def _has_saved_more(record: AttemptRecord, *, before: int) -> bool:
    """Than it began with, which may be less than was there before, for a checkpoint can go or be torn."""
    if record.saved_step is None:
        return False
    # What it began with is not known where it died before it told: fewer steps than before are new ones all the same.
    return record.saved_step != before if record.resumed_from is None else record.saved_step > record.resumed_from


def _abridged(record: AttemptRecord) -> AttemptRecord:
    """Ten long stories would be more than an object should hold; that of the newest attempt is whole."""
    return record.model_copy(
        update={
            "message": record.message[:OLD_MESSAGE_CHARACTERS],
            "log_tail": record.log_tail[-OLD_TAIL_CHARACTERS:],
            "standstill": record.standstill and record.standstill.model_copy(update={"frames": []}),
        }
    )


def failure_of(attempts: AttemptsStatus, spec: SFTJobSpec) -> Failure | None:
    """Whether the newest record ends the job. None: another attempt may follow."""
    last, policy = attempts.history[0], spec.run_policy
    # Of a script that keeps checkpoints of its own, or none, nobody knows whether it comes further.
    shows_progress = spec.script is None or attempts.saved_step is not None
    cause = f"{last.reason}: {last.message}" if last.message else last.reason.value
    if last.reason in NEVER_RETRIED:
        return Failure(last.reason.value, last.message)
    if attempts.failures > policy.retries:
        return Failure(
            Verdict.RETRIES_EXHAUSTED,
            f"{counted(attempts.failures, 'failure')}, {_allowed(policy.retries)}; {cause}",
        )
    if attempts.disruptions > policy.disruption_retries:
        return Failure(
            Verdict.DISRUPTION_RETRIES_EXHAUSTED,
            f"{counted(attempts.disruptions, 'disruption')}, {_allowed(policy.disruption_retries)}; {cause}",
        )
    limit = policy.active_deadline_seconds
    if limit is not None and attempts.running_seconds >= limit:
        return Failure(
            Reason.DEADLINE_EXCEEDED,
            f"spec.runPolicy.activeDeadlineSeconds: the job has run for its {limit} s; {cause}",
        )
    if shows_progress and attempts.without_progress >= NO_PROGRESS_LIMIT:
        return Failure(
            Verdict.NO_PROGRESS, f"{NO_PROGRESS_LIMIT} attempts in a row without a newer checkpoint; {cause}"
        )
    return None


def _allowed(retries: int) -> str:
    return f"{counted(retries, 'retry', 'retries')} allowed"


def next_attempt_at(attempts: AttemptsStatus, now: datetime) -> datetime:
    """A second after progress or the first loss, else 10, 20, 40... seconds, 300 at most.

    Whoever let go of what it held waits 10 s from the first time on, so that others may take it.
    """
    unstarted = list(takewhile(lambda record: record.reason is Reason.NOT_STARTED, attempts.history))
    in_a_row = max(attempts.without_progress, 1 + len(unstarted))
    return now + timedelta(seconds=1 if in_a_row <= 1 else min(300, 10 * 2 ** (in_a_row - 2)))


def renewed(attempts: AttemptsStatus) -> AttemptsStatus:
    """The counters of a job that was asked by hand to try again: what was used is forgotten, what happened is not."""
    return attempts.model_copy(
        update={
            "failures": 0,
            "disruptions": 0,
            "shortages": 0,
            "without_progress": 0,
            "prepared": None,
            "image": None,
            "running_seconds": 0,
            "avoided_nodes": [],
            "next_at": None,
        }
    )
