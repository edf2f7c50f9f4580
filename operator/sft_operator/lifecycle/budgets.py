"""What an attempt's end costs, and whether another may follow: counters in, counters and verdict out.

Called by `decide` once for each attempt, when its end is recorded.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sftjob.failure import DISRUPTIONS, NEVER_RETRIED, Reason
from sftjob.spec import SFTJobSpec
from sftjob.status import HISTORY_LIMIT, AttemptRecord, AttemptsStatus

NO_PROGRESS_LIMIT = 3
"""Attempts in a row without a newer checkpoint that end a job."""


@dataclass(frozen=True)
class Failure:
    """Why no further attempt follows: reason and message of the condition Failed."""

    reason: str
    message: str


def account(attempts: AttemptsStatus, record: AttemptRecord, *, is_requested: bool) -> AttemptsStatus:
    """The counters after this end. A requested suspension costs nothing."""
    is_newer = record.saved_step is not None and record.saved_step > (attempts.saved_step or 0)
    is_success = record.reason is Reason.SUCCEEDED
    is_counted = not is_requested and not is_success
    is_disruption = record.reason in DISRUPTIONS
    return attempts.model_copy(
        update={
            "failures": attempts.failures + (is_counted and not is_disruption),
            "disruptions": attempts.disruptions + (is_counted and is_disruption),
            "without_progress": 0 if is_newer or is_success else attempts.without_progress + is_counted,
            "saved_step": record.saved_step if is_newer else attempts.saved_step,
            "ending": None,
            "history": [record, *attempts.history][:HISTORY_LIMIT],
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
        return Failure("RetriesExhausted", f"{attempts.failures} failures, {policy.retries} retries allowed; {cause}")
    if attempts.disruptions > policy.disruption_retries:
        return Failure(
            "DisruptionRetriesExhausted",
            f"{attempts.disruptions} disruptions, {policy.disruption_retries} retries allowed; {cause}",
        )
    if shows_progress and attempts.without_progress >= NO_PROGRESS_LIMIT:
        return Failure("NoProgress", f"{NO_PROGRESS_LIMIT} attempts in a row without a newer checkpoint; {cause}")
    return None


def next_attempt_at(attempts: AttemptsStatus, now: datetime) -> datetime:
    """A second after progress or the first loss, else 10, 20, 40... seconds, 300 at most."""
    in_a_row = attempts.without_progress
    return now + timedelta(seconds=1 if in_a_row <= 1 else min(300, 10 * 2 ** (in_a_row - 2)))
