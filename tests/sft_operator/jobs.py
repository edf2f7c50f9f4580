"""Jobs, outcomes and observations that the tests of this room begin with."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sft_operator.lifecycle.decide import Decision
from sft_operator.lifecycle.observation import AttemptObservation, NodeObservation, NodeState, Observation, Trouble
from sftjob.failure import Reason, exit_code
from sftjob.job import ObjectMeta, SFTJob
from sftjob.outcome import Outcome
from sftjob.progress import Progress, Stage
from sftjob.spec import SFTJobSpec
from sftjob.status import AttemptRecord, AttemptsStatus, Phase, SFTJobStatus

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


WITHOUT_SCRIPT = {
    "model": {"loadFrom": {"uri": "pvc://models/base"}},
    "data": {"datasets": [{"name": "chats", "uri": "pvc://data/chats.jsonl"}]},
}


def a_job(
    *,
    nodes: int = 1,
    status: SFTJobStatus | None = None,
    script: str | None = None,
    gpus: int = 0,
    retry: str | None = None,
    queue: str | None = None,
    **policy: Any,
) -> SFTJob:
    """`gpus` a node; `retry` is the value of its annotation."""
    spec = SFTJobSpec.model_validate(
        (WITHOUT_SCRIPT if script is None else {"script": {"uri": script}})
        | {
            "output": [{"uri": "pvc://models/tuned"}],
            "compute": {"nodes": nodes, "resources": {"limits": {"nvidia.com/gpu": gpus} if gpus else {}}},
            "runPolicy": policy,
            "queue": {"name": queue} if queue else None,
        }
    )
    annotations = {} if retry is None else {"sftjob.dev/retry": retry}
    metadata = ObjectMeta(name="tiny", namespace="default", uid="uid-1", resource_version="1", annotations=annotations)
    return SFTJob(metadata=metadata, spec=spec, status=status or SFTJobStatus())


def an_outcome(reason: Reason, *, attempt: int = 1, node_rank: int = 0, ended: float = 0, **fields: Any) -> Outcome:
    return Outcome(
        attempt=attempt,
        node_rank=node_rank,
        reason=reason,
        exit_code=exit_code(reason),
        started_at=at(-60),
        ended_at=at(ended),
        **fields,
    )


def a_success(*, attempt: int = 1, **fields: Any) -> Outcome:
    return an_outcome(Reason.SUCCEEDED, attempt=attempt, final_digest="sha256:00", **fields)


def some_progress(*, attempt: int = 1, step: int = 0, seconds: float = 0, **fields: Any) -> Progress:
    return Progress(attempt=attempt, stage=Stage.TRAINING, step=step, reported_at=at(seconds), **fields)


def seen(
    number: int,
    *nodes: NodeState | Outcome | None,
    is_deleting: bool = False,
    created_at: datetime | None = None,
    is_suspended: bool = False,
    goes_by_itself: bool = False,
) -> AttemptObservation:
    """Each node in the order of ranks: its state, its outcome if it has ended, None if it ended without one."""
    observed = [
        NodeObservation(rank, node) if isinstance(node, NodeState) else NodeObservation(rank, NodeState.ENDED, node)
        for rank, node in enumerate(nodes)
    ]
    return AttemptObservation(number, tuple(observed), is_deleting, created_at, is_suspended, goes_by_itself)


def observing(
    *attempts: AttemptObservation,
    progress: Progress | None = None,
    trouble: Trouble | None = None,
    silent_seconds: float = 0.0,
    queue_message: str = "",
) -> Observation:
    return Observation(attempts, progress, trouble, silent_seconds, queue_message)


def in_attempt(number: int, phase: Phase = Phase.RUNNING, **attempts: Any) -> SFTJobStatus:
    """A status in the middle of attempt N, all before it recorded."""
    history = [
        AttemptRecord(number=n, reason=Reason.PREEMPTED, saved_step=10, ended_at=at(-100)) for n in range(1, number)
    ]
    return SFTJobStatus(
        phase=phase,
        attempts=AttemptsStatus(current=number, started_at=at(-60), history=history[::-1], **attempts),
    )


def after(number: int, phase: Phase = Phase.RESTARTING, **attempts: Any) -> SFTJobStatus:
    """A status between attempts: N is recorded, N+1 not announced."""
    status = in_attempt(number + 1, phase, **attempts)
    return status.model_copy(update={"attempts": status.attempts.model_copy(update={"current": number})})


def summary(decision: Decision) -> tuple[Phase, int, Any, float | None]:
    return decision.status.phase, decision.status.attempts.current, decision.action, decision.requeue_after


def failed(decision: Decision) -> tuple[str, str]:
    condition = next(c for c in decision.status.conditions if c.type == "Failed" and c.status == "True")
    return condition.reason, condition.message
