"""`decide`: a job and what was seen of its attempts in, the status to write and at most one action out.

Pure. Called by `reconcile`, which writes the status before it acts. An attempt's number is announced in the status
(phase Starting) before the attempt is created, so whoever reads the status knows of every attempt that can exist.
"""

from dataclasses import dataclass
from datetime import datetime

from sft_operator.lifecycle.budgets import Failure, account, failure_of, next_attempt_at, renewed
from sft_operator.lifecycle.cause import (
    end_record,
    last_end,
    unstarted_attempt_record,
    untold_record,
    with_loss_told,
    with_standstill_told,
    with_start_told,
)
from sft_operator.lifecycle.columns import columns
from sft_operator.lifecycle.conditions import conditions, of_generation
from sft_operator.lifecycle.deadlines import Deadline, nearest_deadline, seconds_run
from sft_operator.lifecycle.image import next_image
from sft_operator.lifecycle.observation import AttemptObservation, AttemptState, NodeState, Observation
from sft_operator.lifecycle.preflight import next_kind
from sft_operator.lifecycle.recovery import recovered_so_far, recovery_after
from sft_operator.lifecycle.report import progress_of_current, with_last_words, with_progress
from sft_operator.lifecycle.size import bounded
from sft_operator.lifecycle.usage import used
from sftjob import names
from sftjob.base import digest
from sftjob.failure import Reason
from sftjob.job import SFTJob
from sftjob.status import AttemptRecord, Condition, Phase, SFTJobStatus

DELETE_AGAIN_SECONDS = 1.0
SHORTEST_WAIT_SECONDS = 1.0
"""Before a deadline is looked at again: a silence is known as of the last answer only."""
HANDLED_LIMIT = 64
"""Characters of a retry's value that are kept as they are."""


@dataclass(frozen=True)
class CreateAttempt:
    number: int


@dataclass(frozen=True)
class DeleteAttempt:
    number: int


@dataclass(frozen=True)
class DeleteJob:
    """The object; what it owns goes with it, its storage stays."""


Action = CreateAttempt | DeleteAttempt | DeleteJob


@dataclass(frozen=True)
class Decision:
    status: SFTJobStatus
    action: Action | None = None
    requeue_after: float | None = None
    """Seconds. None: nothing is due until something changes."""


def decide(job: SFTJob, observation: Observation, *, now: datetime) -> Decision:
    status = _with_retry(job)
    if status.phase.is_final:
        return _of_finished(job, status, observation, now)

    status = with_progress(status, observation.progress)
    failure = deadline = None
    attempt = observation.attempt(status.attempts.current)
    if not status.attempts.current_has_ended:
        if _has_ended(job, status, attempt):
            status, failure = _record_end(job, status, observation, now)
        elif attempt is not None:
            taken = _is_taken_back(status, attempt)
            status = status if taken else _with_life(status, attempt, now)
            deadline = nearest_deadline(job, status, attempt, observation, now=now)
            if taken and (_never_ran(status, attempt) or not attempt.has_failed):
                status = _note_taken_back(status, attempt, observation, now)
            elif attempt.has_failed:
                status = _note_ending(status, attempt, now)
            elif deadline is not None and deadline.seconds_left <= 0:
                status = _note_deadline(status, deadline, now)

    decision = _next_step(job, status, observation, now)
    generation = job.metadata.generation
    status = decision.status.model_copy(update={"observed_generation": generation})
    attempts = status.attempts.model_copy(update={"recovery": recovered_so_far(status, now)})
    facts = conditions(
        status,
        generation=generation,
        failure=failure,
        # It was seen of an attempt that a suspended job does not want any more.
        trouble=None if status.phase is Phase.SUSPENDED else observation.trouble,
        queue_message=observation.queue_message,
        now=now,
    )
    status = bounded(status.model_copy(update={"attempts": attempts, "conditions": facts, "columns": columns(status)}))
    requeue_after = decision.requeue_after
    if requeue_after is None and deadline is not None:
        requeue_after = max(SHORTEST_WAIT_SECONDS, deadline.seconds_left)
    return Decision(status, decision.action, requeue_after)


def _with_retry(job: SFTJob) -> SFTJobStatus:
    """A value that is new on a job that has failed starts it anew; one that comes earlier asks for nothing."""
    status = job.status
    wanted = _short(job.metadata.annotations.get(names.RETRY_ANNOTATION, "")) or None
    if wanted is None or wanted == status.retry_handled or status.phase is Phase.SUCCEEDED:
        return status
    status = status.model_copy(update={"retry_handled": wanted})
    if status.phase is not Phase.FAILED:
        return status
    return status.model_copy(update={"phase": Phase.RESTARTING, "attempts": renewed(status.attempts)})


def _short(value: str) -> str:
    """Of a longer value the digest: two that begin alike are two."""
    return value if len(value) <= HANDLED_LIMIT else digest(value)[:HANDLED_LIMIT]


def _failure_told(facts: list[Condition]) -> Failure | None:
    failed = next((one for one in facts if one.type == "Failed" and one.status == "True"), None)
    return Failure(failed.reason, failed.message) if failed else None


def _of_finished(job: SFTJob, status: SFTJobStatus, observation: Observation, now: datetime) -> Decision:
    generation, facts = job.metadata.generation, status.conditions
    if any(condition.type == "Accepted" and condition.status == "False" for condition in facts):
        # Another version of the operator had refused its spec.
        facts = conditions(status, failure=_failure_told(facts), trouble=None, generation=generation, now=now)
    facts = of_generation(facts, generation)
    status = status.model_copy(update={"observed_generation": generation, "conditions": facts})
    leftover = next((attempt for attempt in observation.attempts if attempt.is_live or attempt.lingers), None)
    if leftover is not None:
        return _deleting(status, leftover)
    limit = job.spec.run_policy.ttl_seconds_after_finished
    if limit is None:
        return Decision(status)
    is_end = {Phase.SUCCEEDED: "Complete", Phase.FAILED: "Failed"}[status.phase]
    ended_at = next(c.last_transition_time for c in status.conditions if c.type == is_end)
    left = limit - (now - ended_at).total_seconds()
    return Decision(status, requeue_after=left) if left > 0 else Decision(status, DeleteJob())


def _has_ended(job: SFTJob, status: SFTJobStatus, attempt: AttemptObservation | None) -> bool:
    if attempt is not None:
        return attempt.state is AttemptState.ENDED
    # Announced and absent: created by now or not, creating it is the same act, unless it isn't wanted any more.
    was_seen = status.phase is not Phase.STARTING or status.attempts.ending is not None
    return was_seen or job.spec.run_policy.suspend


def _record_end(
    job: SFTJob, status: SFTJobStatus, observation: Observation, now: datetime
) -> tuple[SFTJobStatus, Failure | None]:
    attempt, attempts = observation.attempt(status.attempts.current), status.attempts
    was_announced_only = attempt is None and status.phase is Phase.STARTING and attempts.ending is None
    is_requested = status.phase is Phase.SUSPENDING or was_announced_only
    is_untold = attempts.ending is None and _never_ran(status, attempt)
    if is_requested and is_untold:
        record = unstarted_attempt_record(attempts, now=now)
    elif attempt is not None and attempt.is_suspended and is_untold:
        record = _taken_back_record(status, attempt, observation, now)
    else:
        if attempt is not None:
            status = with_last_words(status, next(node for node in attempt.nodes if node.rank == 0).outcome)
        record = end_record(attempt, attempts=attempts, progress=progress_of_current(status), now=now)
        record = with_standstill_told(record if is_requested else with_start_told(record, attempts))
    record = with_loss_told(record)

    ran = seconds_run(attempts, until=last_end(attempt, progress=progress_of_current(status), now=now))
    if attempts.recovery is not None:
        record = record.model_copy(update={"recovery": attempts.recovery.model_copy(update={"since": None})})
    noticed_at = attempts.noticed_at
    attempts = account(attempts, record, is_requested=is_requested, running_seconds=ran)
    usage = used(status.usage, record, job.spec.compute, running_seconds=ran)
    status = status.model_copy(update={"usage": usage})
    failure = None if record.reason is Reason.SUCCEEDED else failure_of(attempts, job.spec)
    if record.reason is Reason.SUCCEEDED or failure is not None:
        phase = Phase.FAILED if failure else Phase.SUCCEEDED
        attempts = attempts.model_copy(update={"recovery": None})
        return status.model_copy(update={"phase": phase, "attempts": attempts}), failure
    is_interruption = not is_requested and record.reason is not Reason.PREPARED
    recovery = recovery_after(record, noticed_at=noticed_at, now=now) if is_interruption else None
    next_at = next_attempt_at(attempts, now) if is_interruption else None
    attempts = attempts.model_copy(update={"next_at": next_at, "recovery": recovery})
    return status.model_copy(update={"phase": Phase.RESTARTING, "attempts": attempts}), None


def _is_taken_back(status: SFTJobStatus, attempt: AttemptObservation) -> bool:
    """It was let run, and somebody has suspended it. Its pods are gone or about to be.

    Whoever did that would go on with new pods under the same number, which the fence in storage keeps from training.
    """
    is_ending = status.attempts.ending is not None or status.phase is Phase.SUSPENDING
    # The job's own queue says nothing: a cluster may give one to what names none, or hold it back without one.
    was_let_go = status.attempts.running_since is not None
    # A pod that only waits may be that of an attempt whose queue lets it go just now.
    lost_pods = attempt.is_deleting or any(node.state in (NodeState.RUNNING, NodeState.ENDED) for node in attempt.nodes)
    return attempt.is_suspended and (was_let_go or lost_pods) and not is_ending


def _never_ran(status: SFTJobStatus, attempt: AttemptObservation | None) -> bool:
    """As far as anybody saw: none of its nodes."""
    nodes = attempt.nodes if attempt is not None else ()
    has_run = any(node.state is NodeState.RUNNING or node.outcome is not None for node in nodes)
    return status.attempts.running_since is None and not has_run


def _with_life(status: SFTJobStatus, attempt: AttemptObservation, now: datetime) -> SFTJobStatus:
    if attempt.is_suspended and status.attempts.ending is None:
        # What its suspension has begun goes on to its end, though nobody wants it any more.
        return status if status.phase is Phase.SUSPENDING else _in_phase(status, Phase.QUEUED)
    if status.phase is Phase.QUEUED:
        # From here on it has its time to start.
        attempts = status.attempts.model_copy(update={"started_at": now})
        status = status.model_copy(update={"phase": Phase.STARTING, "attempts": attempts})
    if attempt.state is not AttemptState.RUNNING or status.attempts.running_since is not None:
        return status
    return status.model_copy(update={"attempts": status.attempts.model_copy(update={"running_since": now})})


def _note_ending(status: SFTJobStatus, attempt: AttemptObservation, now: datetime) -> SFTJobStatus:
    """Written before the attempt is deleted: whoever waits for its other nodes may be a process that never saw this."""
    ending = end_record(attempt, attempts=status.attempts, progress=progress_of_current(status), now=now)
    return _ending(status, ending, now)


def _note_taken_back(
    status: SFTJobStatus, attempt: AttemptObservation, observation: Observation, now: datetime
) -> SFTJobStatus:
    return _ending(status, _taken_back_record(status, attempt, observation, now), now)


def _taken_back_record(
    status: SFTJobStatus, attempt: AttemptObservation, observation: Observation, now: datetime
) -> AttemptRecord:
    reason, when = (Reason.NOT_STARTED, " before it ran") if _never_ran(status, attempt) else (Reason.PREEMPTED, "")
    said = f": {observation.queue_message}" if observation.queue_message else ""
    message, progress = f"somebody else suspended the attempt{when}{said}", progress_of_current(status)
    return untold_record(reason, message, attempts=status.attempts, progress=progress, now=now)


def _note_deadline(status: SFTJobStatus, deadline: Deadline, now: datetime) -> SFTJobStatus:
    progress = progress_of_current(status)
    ending = untold_record(deadline.reason, deadline.message, attempts=status.attempts, progress=progress, now=now)
    return _ending(status, ending, now)


def _ending(status: SFTJobStatus, record: AttemptRecord, now: datetime) -> SFTJobStatus:
    update = {"ending": record, "noticed_at": status.attempts.noticed_at or now}
    return status.model_copy(update={"attempts": status.attempts.model_copy(update=update)})


def _next_step(job: SFTJob, status: SFTJobStatus, observation: Observation, now: datetime) -> Decision:
    """What the recorded state calls for. One attempt at a time: nothing is created while another one lives.

    What has ended is in nobody's way: its objects may stay for as long as the node that they are on is lost.
    """
    current = None if status.attempts.current_has_ended else status.attempts.current
    decision = None if current is None else _of_current(job, status, observation.attempt(current))
    if decision is not None and isinstance(decision.action, DeleteAttempt):
        return decision
    other = next((attempt for attempt in observation.live() if attempt.number != current), None)
    if other is not None:
        return _deleting(decision.status if decision else status, other)
    decision = decision or _between_attempts(job, status, observation, now)
    leftover = next((attempt for attempt in observation.attempts if _is_leftover(attempt, status)), None)
    return decision if decision.action or leftover is None else _deleting(decision.status, leftover)


def _is_leftover(attempt: AttemptObservation, status: SFTJobStatus) -> bool:
    """Of the newest attempt all is kept once it has ended, for whoever wants to read its logs; unless it holds GPUs."""
    is_kept = attempt.number == status.attempts.current and not attempt.lingers
    return not attempt.is_live and not attempt.is_deleting and not is_kept


def _of_current(job: SFTJob, status: SFTJobStatus, attempt: AttemptObservation | None) -> Decision:
    if attempt is None:
        return Decision(status, CreateAttempt(status.attempts.current))
    if job.spec.run_policy.suspend or status.phase is Phase.SUSPENDING:
        return _deleting(_in_phase(status, Phase.SUSPENDING), attempt)
    if attempt.state is AttemptState.RUNNING:
        status = _in_phase(status, Phase.RUNNING)
    if attempt.is_deleting or attempt.has_failed or status.attempts.ending is not None:
        # A deadline has passed; or the others can't go on without one that failed, and some would wait for it for ever.
        return _deleting(status, attempt)
    if attempt.is_incomplete:
        return Decision(status, CreateAttempt(attempt.number))
    return Decision(status)


def _between_attempts(job: SFTJob, status: SFTJobStatus, observation: Observation, now: datetime) -> Decision:
    attempts = status.attempts
    if status.phase.is_final:
        return Decision(status)
    if job.spec.run_policy.suspend:
        attempts = attempts.model_copy(update={"avoided_nodes": [], "recovery": None})
        return Decision(status.model_copy(update={"phase": Phase.SUSPENDED, "attempts": attempts}))
    if attempts.next_at is not None and attempts.next_at > now:
        return Decision(_in_phase(status, Phase.RESTARTING), requeue_after=(attempts.next_at - now).total_seconds())
    number, kind = attempts.current + 1, next_kind(attempts, job.spec)
    image = next_image(status, job.spec, default=observation.default_image)
    announced = {"current": number, "kind": kind, "image": image, "next_at": None, "started_at": now}
    attempts = attempts.model_copy(update=announced)
    return Decision(status.model_copy(update={"phase": Phase.STARTING, "attempts": attempts}), CreateAttempt(number))


def _deleting(status: SFTJobStatus, attempt: AttemptObservation) -> Decision:
    """Asked for until the attempt has ended, where a backend kills on a later call what outlives its grace."""
    action = None if attempt.goes_by_itself else DeleteAttempt(attempt.number)
    return Decision(status, action, requeue_after=DELETE_AGAIN_SECONDS)


def _in_phase(status: SFTJobStatus, phase: Phase) -> SFTJobStatus:
    return status.model_copy(update={"phase": phase})
