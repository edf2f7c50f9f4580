"""`decide`: a job and what was seen of its attempts in, the status to write and at most one action out.

Pure. Called by `reconcile`, which writes the status before it acts. An attempt's number is announced in the status
(phase Starting) before the attempt is created, so whoever reads the status knows of every attempt that can exist.
"""

from dataclasses import dataclass
from datetime import datetime

from sft_operator.lifecycle.budgets import Failure, account, failure_of, next_attempt_at
from sft_operator.lifecycle.cause import end_record, unstarted_attempt_record
from sft_operator.lifecycle.columns import columns
from sft_operator.lifecycle.conditions import conditions
from sft_operator.lifecycle.observation import AttemptObservation, AttemptState, Observation
from sft_operator.lifecycle.report import progress_of_current, with_last_words, with_progress
from sftjob.failure import Reason
from sftjob.job import SFTJob
from sftjob.status import Phase, SFTJobStatus

DELETE_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class CreateAttempt:
    number: int


@dataclass(frozen=True)
class DeleteAttempt:
    number: int


Action = CreateAttempt | DeleteAttempt


@dataclass(frozen=True)
class Decision:
    status: SFTJobStatus
    action: Action | None = None
    requeue_after: float | None = None
    """Seconds. None: nothing is due until something changes."""


def decide(job: SFTJob, observation: Observation, *, now: datetime) -> Decision:
    status = job.status
    if status.phase.is_final:
        status = status.model_copy(update={"observed_generation": job.metadata.generation})
        leftover = next(iter(observation.live()), None)
        return _deleting(status, leftover) if leftover else Decision(status)

    status = with_progress(status, observation.progress)
    failure = None
    attempt = observation.attempt(status.attempts.current)
    if not status.attempts.current_has_ended:
        if _has_ended(job, status, attempt):
            status, failure = _record_end(job, status, attempt, now)
        elif attempt is not None and attempt.has_failed:
            status = _note_ending(status, attempt, now)

    decision = _next_step(job, status, observation, now)
    generation = job.metadata.generation
    status = decision.status.model_copy(update={"observed_generation": generation})
    facts = conditions(status, generation=generation, failure=failure, trouble=observation.trouble, now=now)
    status = status.model_copy(update={"conditions": facts, "columns": columns(status)})
    return Decision(status, decision.action, decision.requeue_after)


def _has_ended(job: SFTJob, status: SFTJobStatus, attempt: AttemptObservation | None) -> bool:
    if attempt is not None:
        return attempt.state is AttemptState.ENDED
    # Announced and absent: created by now or not, creating it is the same act, unless it isn't wanted any more.
    was_seen = status.phase is not Phase.STARTING or status.attempts.ending is not None
    return was_seen or job.spec.run_policy.suspend


def _record_end(
    job: SFTJob, status: SFTJobStatus, attempt: AttemptObservation | None, now: datetime
) -> tuple[SFTJobStatus, Failure | None]:
    attempts = status.attempts
    is_requested = status.phase is Phase.SUSPENDING
    if attempt is None and attempts.ending is None and status.phase is Phase.STARTING:
        is_requested = True
        record = unstarted_attempt_record(attempts.current, now=now)
    else:
        if attempt is not None:
            status = with_last_words(status, next(node for node in attempt.nodes if node.rank == 0).outcome)
        record = end_record(attempt, attempts=attempts, progress=progress_of_current(status), now=now)

    attempts = account(attempts, record, is_requested=is_requested)
    if record.reason is Reason.SUCCEEDED:
        return status.model_copy(update={"phase": Phase.SUCCEEDED, "attempts": attempts}), None
    failure = failure_of(attempts, job.spec)
    if failure is not None:
        return status.model_copy(update={"phase": Phase.FAILED, "attempts": attempts}), failure
    next_at = None if is_requested else next_attempt_at(attempts, now)
    attempts = attempts.model_copy(update={"next_at": next_at})
    return status.model_copy(update={"phase": Phase.RESTARTING, "attempts": attempts}), None


def _note_ending(status: SFTJobStatus, attempt: AttemptObservation, now: datetime) -> SFTJobStatus:
    """Written before the attempt is deleted: whoever waits for its other nodes may be a process that never saw this."""
    ending = end_record(attempt, attempts=status.attempts, progress=progress_of_current(status), now=now)
    return status.model_copy(update={"attempts": status.attempts.model_copy(update={"ending": ending})})


def _next_step(job: SFTJob, status: SFTJobStatus, observation: Observation, now: datetime) -> Decision:
    """What the recorded state calls for. One attempt at a time: nothing is created while another one lives."""
    current = None if status.attempts.current_has_ended else status.attempts.current
    decision = None if current is None else _of_current(job, status, observation.attempt(current))
    if decision is not None and isinstance(decision.action, DeleteAttempt):
        return decision
    leftover = next((attempt for attempt in observation.attempts if _is_leftover(attempt, status, current)), None)
    if leftover is not None:
        return _deleting(decision.status if decision else status, leftover)
    return decision or _between_attempts(job, status, now)


def _is_leftover(attempt: AttemptObservation, status: SFTJobStatus, current: int | None) -> bool:
    """Of the newest attempt all is kept once it has ended, for whoever wants to read its logs."""
    return attempt.number != current and (attempt.is_live or attempt.number != status.attempts.current)


def _of_current(job: SFTJob, status: SFTJobStatus, attempt: AttemptObservation | None) -> Decision:
    if attempt is None:
        return Decision(status, CreateAttempt(status.attempts.current))
    if job.spec.run_policy.suspend or status.phase is Phase.SUSPENDING:
        return _deleting(_in_phase(status, Phase.SUSPENDING), attempt)
    if attempt.state is AttemptState.RUNNING:
        status = _in_phase(status, Phase.RUNNING)
    if attempt.is_deleting or attempt.has_failed:
        # The others can't go on without the one that failed; some would wait for it for ever.
        return _deleting(status, attempt)
    if attempt.is_incomplete:
        return Decision(status, CreateAttempt(attempt.number))
    return Decision(status)


def _between_attempts(job: SFTJob, status: SFTJobStatus, now: datetime) -> Decision:
    attempts = status.attempts
    if status.phase.is_final:
        return Decision(status)
    if job.spec.run_policy.suspend:
        return Decision(_in_phase(status, Phase.SUSPENDED))
    if attempts.next_at is not None and attempts.next_at > now:
        return Decision(_in_phase(status, Phase.RESTARTING), requeue_after=(attempts.next_at - now).total_seconds())
    number = attempts.current + 1
    announced = attempts.model_copy(update={"current": number, "next_at": None, "started_at": now})
    return Decision(status.model_copy(update={"phase": Phase.STARTING, "attempts": announced}), CreateAttempt(number))


def _deleting(status: SFTJobStatus, attempt: AttemptObservation) -> Decision:
    """Deleting is asked for until the attempt has ended: a backend kills what outlives its grace on a later call."""
    return Decision(status, DeleteAttempt(attempt.number), requeue_after=DELETE_AGAIN_SECONDS)


def _in_phase(status: SFTJobStatus, phase: Phase) -> SFTJobStatus:
    return status.model_copy(update={"phase": phase})
