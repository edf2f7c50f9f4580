"""Why an attempt ended: the last words of all its nodes in, one record of its history out. Called by `decide`."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sft_operator.lifecycle.observation import AttemptObservation, NodeObservation, NodeState
from sftjob.failure import BROUGHT_ABOUT, NEVER_RETRIED, Reason
from sftjob.outcome import Outcome
from sftjob.progress import EndBefore, Progress
from sftjob.status import AttemptRecord, AttemptsStatus

GPU_FAULT_SIGNS = ("uncorrectable ECC error encountered", "uncorrectable NVLink error detected during the execution")
"""In the words of a rank: how CUDA names errors 214 and 220, the two that only broken hardware brings about."""

LOG_TAIL_CHARACTERS = 600
_BY_OPERATOR = (Reason.HANG, Reason.NOT_STARTED)
"""Decided here: what the attempt's nodes say afterwards is how they were ended."""


def succeeded(attempt: AttemptObservation) -> bool:
    """Every node exited 0, and node 0 names the digest of the final checkpoint's manifest.

    A script that has no Trainer of ours has no such checkpoint: that it ran to its end must do.
    """
    outcomes = [node.outcome for node in attempt.nodes]
    return all(outcome is not None and outcome.reason is Reason.SUCCEEDED for outcome in outcomes) and any(
        outcome is not None and outcome.node_rank == 0 and (outcome.final_digest or outcome.script_completed)
        for outcome in outcomes
    )


def end_record(
    attempt: AttemptObservation | None, *, attempts: AttemptsStatus, progress: Progress | None, now: datetime
) -> AttemptRecord:
    """Of the current attempt, by those of its nodes that have ended; None: nothing of it exists any more.

    What is known already of nodes that are gone is weighed with them. `progress` is the attempt's last report: what a
    lost launcher can't tell any more.
    """
    lost = untold_record(
        Reason.LAUNCHER_LOST,
        "the attempt disappeared without an outcome",
        attempts=attempts,
        progress=progress,
        now=now,
    )
    ended = [node for node in attempt.nodes if node.state is NodeState.ENDED] if attempt else []
    records = ([attempts.ending] if attempts.ending else []) + [_node_record(node, lost) for node in ended]
    if attempt is not None and succeeded(attempt):
        record = next(record for record in records if record.node_rank == 0)
    else:
        record = min(records, key=_explains_most, default=lost)
        if record.reason is Reason.SUCCEEDED:
            message = "it reported success without naming the final checkpoint"
            record = record.model_copy(update={"reason": Reason.LAUNCHER_LOST, "message": message})
    every = (*records, lost)
    if record.reason is Reason.HANG:
        record = _with_culprit(record, every)
    last, saved = _largest([one.last_step for one in every]), _largest([one.saved_step for one in every])
    return record.model_copy(update={"last_step": last, "saved_step": saved})


def with_loss_told(record: AttemptRecord) -> AttemptRecord:
    """Of an attempt that ended before its training did."""
    if record.reason is Reason.SUCCEEDED or record.last_step is None:
        return record
    kept = max(record.resumed_from or 0, record.saved_step or 0)
    return record.model_copy(update={"lost_steps": max(0, record.last_step - kept)})


def with_start_told(record: AttemptRecord, attempts: AttemptsStatus) -> AttemptRecord:
    """What the cluster took away before a container of it began has not started, whatever took it away."""
    is_taken = record.reason in (Reason.PREEMPTED, Reason.NODE_LOST)
    has_told = record.exit_code is not None or record.last_step is not None or record.saved_step is not None
    if not is_taken or has_told or attempts.running_since is not None:
        return record
    message = f"{record.reason} before it ran: {record.message}"
    return record.model_copy(update={"reason": Reason.NOT_STARTED, "message": message})


def with_standstill_told(record: AttemptRecord) -> AttemptRecord:
    """The message as it stays: who stood where, and where the stacks are."""
    if record.standstill is None:
        return record
    return record.model_copy(update={"message": f"{record.message}; {record.standstill.told()}"})


def with_words_of_storage(record: AttemptRecord, end: EndBefore) -> AttemptRecord:
    """Of an attempt whose launchers were gone when somebody looked, with what the next one found of them."""
    told = end.model_dump(include={"node_rank", "reason", "exit_code", "rank", "signal", "ended_at"})
    place = {} if record.node_rank == end.node_rank else {"pod": None, "node": None}
    words = {"message": end.message, "log_tail": end.log_tail[-LOG_TAIL_CHARACTERS:]}
    return record.model_copy(update=told | place | words)


def untold_record(
    reason: Reason, message: str, *, attempts: AttemptsStatus, progress: Progress | None, now: datetime
) -> AttemptRecord:
    """Of an end that no launcher tells of: `progress` is the attempt's last report."""
    return AttemptRecord(
        number=attempts.current,
        kind=attempts.kind,
        reason=reason,
        message=message,
        resumed_from=progress.resumed_from if progress else None,
        skipped_checkpoints=progress.skipped_checkpoints if progress else [],
        last_step=progress.step if progress else None,
        saved_step=progress.saved_step if progress else None,
        started_at=attempts.started_at,
        ended_at=now,
    )


def last_end(attempt: AttemptObservation | None, *, progress: Progress | None, now: datetime) -> datetime:
    """When the last launcher of an attempt that has ended did so, as far as they tell; never after `now`.

    One without a word ended after the attempt's last report: when, nobody may have been there to see.
    """
    heard = progress.reported_at if progress else now
    ended = [node.outcome.ended_at if node.outcome else heard for node in attempt.nodes] if attempt else [heard]
    return min(max(ended), now)


def unstarted_attempt_record(attempts: AttemptsStatus, *, now: datetime) -> AttemptRecord:
    return AttemptRecord(
        number=attempts.current,
        kind=attempts.kind,
        reason=Reason.PREEMPTED,
        message="suspended before it started",
        ended_at=now,
    )


def _node_record(node: NodeObservation, lost: AttemptRecord) -> AttemptRecord:
    place = {"node_rank": node.rank, "pod": node.pod, "node": node.node}
    outcome = node.outcome
    if outcome is None:
        message = f"the launcher of node {node.rank} ended without a word"
        return lost.model_copy(update=place | {"message": message})
    told = {
        "reason": Reason.GPU_FAULT if _is_gpu_fault(outcome) else outcome.reason,
        "exit_code": outcome.exit_code,
        "rank": outcome.rank,
        "signal": outcome.signal,
        "standstill": outcome.standstill,
        "message": outcome.message,
        "resumed_from": outcome.resumed_from,
        "skipped_checkpoints": outcome.skipped_checkpoints,
        "last_step": outcome.last_step,
        "saved_step": outcome.saved_step,
        "log_tail": outcome.log_tail[-LOG_TAIL_CHARACTERS:],
        "started_at": outcome.started_at,
        "ended_at": outcome.ended_at,
    }
    return lost.model_copy(update=place | told)


def _with_culprit(record: AttemptRecord, every: Iterable[AttemptRecord]) -> AttemptRecord:
    """Of all nodes the one whose rank is furthest behind, where any launcher has looked."""
    stood = [(one.standstill, one) for one in every if one.standstill is not None]
    if not stood:
        return record
    standstill, node = min(stood, key=lambda pair: pair[0].behind)
    place = {name: getattr(node, name) for name in ("node_rank", "pod", "node", "log_tail")}
    return record.model_copy(update=place | {"standstill": standstill, "rank": standstill.rank})


def _is_gpu_fault(outcome: Outcome) -> bool:
    if outcome.reason not in (Reason.RANK_FAILED, Reason.RANK_KILLED):
        return False
    return any(sign in text for sign in GPU_FAULT_SIGNS for text in (outcome.message, outcome.log_tail))


def _explains_most(record: AttemptRecord) -> tuple[int, datetime]:
    """Sort key: the kind of cause, then who ended first; the first of equals is the node of the lowest rank."""
    reason = record.reason
    if reason in NEVER_RETRIED:
        kind = 0
    elif reason in _BY_OPERATOR:
        kind = 1
    else:
        kind = 3 + BROUGHT_ABOUT.index(reason) if reason in BROUGHT_ABOUT else 2
    return kind, record.ended_at


def _largest(steps: Sequence[int | None]) -> int | None:
    return max((step for step in steps if step is not None), default=None)
