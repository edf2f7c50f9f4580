"""How long a live attempt may still go on as it is: the run policy's deadlines against what was seen of it.

Called by `decide`, which ends an attempt whose nearest deadline has passed and otherwise looks again when it does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sft_operator.lifecycle.observation import AttemptObservation, AttemptState, NodeState, Observation
from sft_operator.lifecycle.report import progress_of_current
from sftjob.failure import Reason
from sftjob.job import SFTJob
from sftjob.status import AttemptsStatus, SFTJobStatus

_LONGEST_TROUBLE = 600
"""Characters: a cluster's own words have no bound."""


@dataclass(frozen=True)
class Deadline:
    seconds_left: float
    reason: Reason
    """Why the attempt ends then."""
    message: str


def nearest_deadline(
    job: SFTJob, status: SFTJobStatus, attempt: AttemptObservation, observation: Observation, *, now: datetime
) -> Deadline | None:
    """Of the current attempt. None where it ends already, or has no limit."""
    ends = job.spec.run_policy.suspend or attempt.is_deleting or status.attempts.ending is not None
    if ends or not attempt.is_live:
        return None
    deadlines = _deadlines(job, status, attempt, observation, now)
    return min(deadlines, key=lambda deadline: deadline.seconds_left, default=None)


def seconds_run(attempts: AttemptsStatus, *, until: datetime) -> int:
    """Of the current attempt. A node's clock that is wrong makes it no longer than it can be."""
    return 0 if attempts.running_since is None else max(0, round((until - attempts.running_since).total_seconds()))


def _deadlines(
    job: SFTJob, status: SFTJobStatus, attempt: AttemptObservation, observation: Observation, now: datetime
) -> Iterator[Deadline]:
    policy, attempts = job.spec.run_policy, status.attempts
    waiting = [node.rank for node in attempt.nodes if node.state in (NodeState.PENDING, NodeState.MISSING)]
    # It may be made long after its announcement; and the clock that tells so may be behind this one.
    created_at = max((moment for moment in (attempts.started_at, attempt.created_at) if moment), default=None)
    is_late = waiting and not attempt.is_suspended
    if policy.start_deadline_seconds is not None and is_late and created_at is not None:
        limit, trouble = policy.start_deadline_seconds, observation.trouble
        why = f"; {trouble.reason}: {trouble.message[:_LONGEST_TROUBLE]}" if trouble else ""
        yield Deadline(
            limit - (now - created_at).total_seconds(),
            Reason.NOT_STARTED,
            f"spec.runPolicy.startDeadlineSeconds: {len(waiting)} of {len(attempt.nodes)} pods did not run within "
            f"{limit} s{why}",
        )
    if policy.active_deadline_seconds is not None and attempts.running_since is not None:
        limit = policy.active_deadline_seconds
        yield Deadline(
            limit - attempts.running_seconds - (now - attempts.running_since).total_seconds(),
            Reason.DEADLINE_EXCEEDED,
            f"spec.runPolicy.activeDeadlineSeconds: the job has run for its {limit} s",
        )
    # 0 is no limit at all; without one, launchers learn what is normal.
    if policy.progress_deadline_seconds and attempt.state is AttemptState.RUNNING and not waiting:
        limit, progress = policy.progress_deadline_seconds, progress_of_current(status)
        where = f" in stage {progress.stage} after step {progress.step}" if progress else " since it started"
        yield Deadline(
            limit - observation.silent_seconds,
            Reason.HANG,
            f"spec.runPolicy.progressDeadlineSeconds: no progress for {limit} s{where}",
        )
