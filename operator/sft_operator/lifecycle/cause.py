"""Why an attempt ended: the last words of all its nodes in, one record of its history out. Called by `decide`."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sft_operator.lifecycle.observation import AttemptObservation, NodeObservation
from sftjob.failure import NEVER_RETRIED, Reason
from sftjob.outcome import Outcome
from sftjob.progress import Progress
from sftjob.status import AttemptRecord

_BY_OTHERS = (Reason.SUPERSEDED, Reason.LAUNCHER_LOST, Reason.RANK_FAILED, Reason.PREEMPTED, Reason.SUCCEEDED)
"""What another node's end can bring about, or what says little of the cause; the more telling first.

A lost node breaks its peers' connections, which end as RankFailed; whatever ends first has its peers preempted.
"""


_NEVER = datetime.max.replace(tzinfo=UTC)


def succeeded(attempt: AttemptObservation) -> bool:
    """Every node exited 0, and node 0 names the digest of the final checkpoint's manifest."""
    outcomes = [node.outcome for node in attempt.nodes]
    return all(outcome is not None and outcome.reason is Reason.SUCCEEDED for outcome in outcomes) and any(
        outcome is not None and outcome.node_rank == 0 and outcome.final_digest for outcome in outcomes
    )


def ended_attempt_record(
    attempt: AttemptObservation, *, progress: Progress | None, started_at: datetime | None, now: datetime
) -> AttemptRecord:
    """`progress` is the attempt's last report: what a lost launcher can't tell any more."""
    outcomes = [node.outcome for node in attempt.nodes if node.outcome is not None]
    saved = [outcome.saved_step for outcome in outcomes] + [progress.saved_step if progress else None]
    last = [outcome.last_step for outcome in outcomes] + [progress.step if progress else None]
    node = attempt.nodes[0] if succeeded(attempt) else min(attempt.nodes, key=_explains_most)
    outcome = node.outcome
    record = AttemptRecord(
        number=attempt.number,
        reason=Reason.LAUNCHER_LOST,
        node_rank=node.rank,
        pod=node.pod,
        node=node.node,
        message=f"the launcher of node {node.rank} ended without a word",
        resumed_from=progress.resumed_from if progress else None,
        skipped_checkpoints=progress.skipped_checkpoints if progress else [],
        last_step=_largest(last),
        saved_step=_largest(saved),
        started_at=started_at,
        ended_at=now,
    )
    if outcome is None:
        return record
    if outcome.reason is Reason.SUCCEEDED and not succeeded(attempt):
        return record.model_copy(update={"message": "it reported success without naming the final checkpoint"})
    return record.model_copy(update=_told_by(outcome))


def lost_attempt_record(
    number: int, *, progress: Progress | None, started_at: datetime | None, now: datetime
) -> AttemptRecord:
    """An attempt that was seen, and of which nothing exists any more."""
    return AttemptRecord(
        number=number,
        reason=Reason.LAUNCHER_LOST,
        message="the attempt disappeared without an outcome",
        resumed_from=progress.resumed_from if progress else None,
        skipped_checkpoints=progress.skipped_checkpoints if progress else [],
        last_step=progress.step if progress else None,
        saved_step=progress.saved_step if progress else None,
        started_at=started_at,
        ended_at=now,
    )


def unstarted_attempt_record(number: int, *, now: datetime) -> AttemptRecord:
    return AttemptRecord(number=number, reason=Reason.PREEMPTED, message="suspended before it started", ended_at=now)


def _explains_most(node: NodeObservation) -> tuple[int, datetime, int]:
    """Sort key: the kind of cause, then who ended first, then the node's rank."""
    reason = node.outcome.reason if node.outcome else Reason.LAUNCHER_LOST
    kind = 0 if reason in NEVER_RETRIED else 1 + (1 + _BY_OTHERS.index(reason) if reason in _BY_OTHERS else 0)
    return kind, node.outcome.ended_at if node.outcome else _NEVER, node.rank


def _told_by(outcome: Outcome) -> dict[str, object]:
    return {
        "reason": outcome.reason,
        "exit_code": outcome.exit_code,
        "rank": outcome.rank,
        "signal": outcome.signal,
        "message": outcome.message,
        "resumed_from": outcome.resumed_from,
        "skipped_checkpoints": outcome.skipped_checkpoints,
        "log_tail": outcome.log_tail[-600:],
        "started_at": outcome.started_at,
        "ended_at": outcome.ended_at,
    }


def _largest(steps: Sequence[int | None]) -> int | None:
    return max((step for step in steps if step is not None), default=None)
