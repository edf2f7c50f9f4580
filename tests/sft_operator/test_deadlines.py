"""What becomes of an attempt, or of a finished job, whose time is over; against literals."""

import pytest
from jobs import (
    NOW,
    a_job,
    a_success,
    after,
    an_outcome,
    at,
    failed,
    in_attempt,
    observing,
    seen,
    some_progress,
    summary,
)

from sft_operator.lifecycle.decide import CreateAttempt, Decision, DeleteAttempt, DeleteJob, decide
from sft_operator.lifecycle.observation import NodeState, Trouble
from sftjob.failure import Obstacle, Reason
from sftjob.job import SFTJob
from sftjob.status import AttemptRecord, AttemptsStatus, Condition, Phase, SFTJobStatus

RUNNING, PENDING = NodeState.RUNNING, NodeState.PENDING


def going_on(decision: Decision, **policy: int) -> SFTJob:
    """The same job with two nodes after this decision was written."""
    return a_job(nodes=2, status=decision.status, **policy)


def test_an_attempt_that_is_half_scheduled_lets_go_when_its_time_to_start_is_over() -> None:
    job = a_job(nodes=2, status=in_attempt(1, Phase.STARTING), startDeadlineSeconds=70)
    trouble = Trouble(Obstacle.UNSCHEDULABLE, "no node takes the pod")
    half = seen(1, RUNNING, PENDING)
    waits = decide(job, observing(half, trouble=trouble), now=NOW)
    assert summary(waits) == (Phase.RUNNING, 1, None, 10.0)
    late = decide(job, observing(half, trouble=trouble), now=at(10))
    assert summary(late) == (Phase.RUNNING, 1, DeleteAttempt(1), 1.0)
    message = (
        "spec.runPolicy.startDeadlineSeconds: 1 of 2 pods did not run within 70 s; Unschedulable: no node takes the pod"
    )
    assert late.status.attempts.ending == AttemptRecord(
        number=1, reason=Reason.NOT_STARTED, message=message, started_at=at(-60), ended_at=at(10)
    )

    # It goes on being deleted though its last pod came up, and whoever was told to end says nothing of the cause.
    ending = decide(going_on(late), observing(seen(1, RUNNING, RUNNING, is_deleting=True)), now=at(11))
    assert ending.action == DeleteAttempt(1)
    preempted = an_outcome(Reason.PREEMPTED, ended=12)
    ended = decide(going_on(ending), observing(seen(1, preempted, None)), now=at(13))
    assert summary(ended) == (Phase.RESTARTING, 1, None, 10.0)
    attempts = ended.status.attempts
    assert (attempts.failures, attempts.disruptions, attempts.without_progress) == (0, 1, 0)
    assert (attempts.history[0].reason, attempts.history[0].message) == (Reason.NOT_STARTED, message)


def test_the_time_to_start_counts_from_when_the_attempt_was_made_and_ends_when_all_run() -> None:
    job = a_job(nodes=2, status=in_attempt(1, Phase.STARTING), startDeadlineSeconds=10)
    made = seen(1, PENDING, PENDING, created_at=at(-3))
    assert summary(decide(job, observing(made), now=NOW)) == (Phase.STARTING, 1, None, 7.0)
    behind = seen(1, PENDING, PENDING, created_at=at(-3600))
    announced = a_job(nodes=2, status=in_attempt(1, Phase.STARTING), startDeadlineSeconds=61)
    assert summary(decide(announced, observing(behind), now=NOW)) == (Phase.STARTING, 1, None, 1.0)
    assert decide(job, observing(seen(1, RUNNING, RUNNING)), now=NOW).action is None
    assert decide(job, observing(seen(1, RUNNING, a_success())), now=NOW).action is None
    # What was never made holds nothing.
    assert decide(job, observing(), now=NOW).action == CreateAttempt(1)


@pytest.mark.parametrize(("before", "seconds"), [(0, 10), (1, 20), (4, 160), (5, 300), (9, 300)])
def test_attempts_that_never_started_are_spaced_further_and_never_end_the_job_for_want_of_progress(
    before: int, seconds: float
) -> None:
    history = [AttemptRecord(number=n, reason=Reason.NOT_STARTED, ended_at=at(-9)) for n in range(before, 0, -1)]
    ending = AttemptRecord(number=before + 1, reason=Reason.NOT_STARTED, ended_at=NOW)
    attempts = AttemptsStatus(current=before + 1, disruptions=before, history=history, ending=ending)
    job = a_job(status=SFTJobStatus(phase=Phase.RUNNING, attempts=attempts))
    decision = decide(job, observing(seen(before + 1, None)), now=NOW)
    assert summary(decision) == (Phase.RESTARTING, before + 1, None, seconds)


def test_running_time_is_summed_over_attempts_and_its_end_saves_stops_and_fails() -> None:
    running = a_job(status=in_attempt(2, running_seconds=80), activeDeadlineSeconds=100)
    first = decide(running, observing(seen(2, RUNNING)), now=NOW)
    assert summary(first) == (Phase.RUNNING, 2, None, 20.0)
    assert first.status.attempts.running_since == NOW
    assert decide(going_on(first, activeDeadlineSeconds=100), observing(seen(2, RUNNING)), now=at(19)).action is None

    late = decide(going_on(first, activeDeadlineSeconds=100), observing(seen(2, RUNNING)), now=at(20))
    assert summary(late) == (Phase.RUNNING, 2, DeleteAttempt(2), 1.0)
    saved = an_outcome(Reason.PREEMPTED, attempt=2, ended=25, saved_step=12, last_step=12, saved=True)
    ended = decide(going_on(late, activeDeadlineSeconds=100), observing(seen(2, saved)), now=at(26))
    assert summary(ended) == (Phase.FAILED, 2, None, None)
    said = "spec.runPolicy.activeDeadlineSeconds: the job has run for its 100 s"
    assert failed(ended) == ("DeadlineExceeded", said)
    attempts = ended.status.attempts
    assert (attempts.failures, attempts.disruptions, attempts.without_progress) == (0, 0, 0)
    assert (attempts.saved_step, attempts.running_seconds, attempts.running_since) == (12, 105, None)


def test_an_attempt_that_ends_by_itself_when_the_time_is_over_is_the_last_one() -> None:
    status = in_attempt(2, running_seconds=70, running_since=at(-30))
    died = observing(seen(2, an_outcome(Reason.PREEMPTED, attempt=2, saved_step=20)))
    decision = decide(a_job(status=status, activeDeadlineSeconds=100), died, now=NOW)
    assert failed(decision) == (
        "DeadlineExceeded",
        "spec.runPolicy.activeDeadlineSeconds: the job has run for its 100 s; Preempted",
    )
    assert decide(a_job(status=status, activeDeadlineSeconds=101), died, now=NOW).status.phase is Phase.RESTARTING
    success = decide(a_job(status=status, activeDeadlineSeconds=1), observing(seen(2, a_success(attempt=2))), now=NOW)
    assert success.status.phase is Phase.SUCCEEDED


def test_time_that_no_launcher_ran_does_not_count() -> None:
    for status in (after(1, running_seconds=99, next_at=at(500)), after(1, Phase.SUSPENDED, running_seconds=99)):
        job = a_job(status=status, activeDeadlineSeconds=100, suspend=status.phase is Phase.SUSPENDED)
        decision = decide(job, observing(), now=at(400))
        assert (decision.status.phase, decision.status.attempts.running_seconds) == (status.phase, 99)
    starting = a_job(status=in_attempt(2, Phase.STARTING, running_seconds=99), activeDeadlineSeconds=100)
    assert summary(decide(starting, observing(seen(2, PENDING)), now=at(400))) == (Phase.STARTING, 2, None, None)


@pytest.mark.parametrize(("ended", "seconds"), [(-10, 20), (3600, 30), (-3600, 0)])
def test_a_nodes_wrong_clock_makes_no_more_of_a_running_time_than_was_seen(ended: float, seconds: int) -> None:
    status = in_attempt(1, running_since=at(-30))
    died = an_outcome(Reason.RANK_KILLED, ended=ended)
    assert decide(a_job(status=status), observing(seen(1, died)), now=NOW).status.attempts.running_seconds == seconds


def test_an_attempt_that_shows_nothing_new_is_a_hang_and_uses_a_retry() -> None:
    progress = some_progress(step=24, saved_step=20, resumed_from=10)
    job = a_job(nodes=2, status=in_attempt(1, running_since=at(-50)), progressDeadlineSeconds=60)
    quiet = observing(seen(1, RUNNING, RUNNING), progress=progress, silent_seconds=55)
    waits = decide(job, quiet, now=NOW)
    assert summary(waits) == (Phase.RUNNING, 1, None, 5.0)
    late = decide(
        going_on(waits, progressDeadlineSeconds=60),
        observing(seen(1, RUNNING, RUNNING), progress=progress, silent_seconds=60),
        now=at(5),
    )
    assert summary(late) == (Phase.RUNNING, 1, DeleteAttempt(1), 1.0)
    killed = an_outcome(Reason.RANK_KILLED, rank=1, signal=9, ended=-500)
    ended = decide(going_on(late), observing(seen(1, killed, None)), now=at(125))
    attempts = ended.status.attempts
    assert attempts.history == [
        AttemptRecord(
            number=1,
            reason=Reason.HANG,
            message="spec.runPolicy.progressDeadlineSeconds: no progress for 60 s in stage Training after step 24",
            resumed_from=10,
            last_step=24,
            saved_step=20,
            lost_steps=4,
            started_at=at(-60),
            ended_at=at(5),
        )
    ]
    assert (attempts.failures, attempts.disruptions) == (1, 0)


def test_silence_is_no_hang_without_a_limit_and_before_all_nodes_run() -> None:
    silent = observing(seen(1, RUNNING, RUNNING), silent_seconds=9999)
    assert decide(a_job(nodes=2, status=in_attempt(1)), silent, now=NOW).action is None
    job = a_job(nodes=2, status=in_attempt(1), progressDeadlineSeconds=60)
    half = observing(seen(1, RUNNING, PENDING), silent_seconds=9999)
    assert summary(decide(job, half, now=NOW)) == (Phase.RUNNING, 1, None, None)
    assert decide(job, silent, now=NOW).action == DeleteAttempt(1)


def test_the_nearest_deadline_says_when_to_look_again() -> None:
    limits = {"startDeadlineSeconds": 100, "activeDeadlineSeconds": 31, "progressDeadlineSeconds": 20}
    status = in_attempt(1, running_since=NOW)
    assert decide(a_job(status=status, **limits), observing(seen(1, RUNNING)), now=NOW).requeue_after == 20
    close = observing(seen(1, RUNNING), silent_seconds=19.9)
    assert decide(a_job(status=status, **limits), close, now=NOW).requeue_after == 1
    half = a_job(nodes=2, status=status, **limits)
    assert decide(half, observing(seen(1, RUNNING, PENDING)), now=NOW).requeue_after == 31


def test_an_attempt_that_ends_already_has_no_deadline() -> None:
    limits = {"activeDeadlineSeconds": 1, "progressDeadlineSeconds": 10}
    job = a_job(status=in_attempt(1, running_since=at(-60)), **limits, suspend=True)
    decision = decide(job, observing(seen(1, RUNNING), silent_seconds=99), now=NOW)
    assert (decision.status.phase, decision.status.attempts.ending) == (Phase.SUSPENDING, None)
    going = a_job(status=in_attempt(1, running_since=at(-60)), **limits)
    decision = decide(going, observing(seen(1, RUNNING, is_deleting=True), silent_seconds=99), now=NOW)
    assert decision.status.attempts.ending is None


@pytest.mark.parametrize(("phase", "type_"), [(Phase.SUCCEEDED, "Complete"), (Phase.FAILED, "Failed")])
def test_a_finished_job_is_deleted_once_its_time_is_over_and_nothing_of_it_lives(phase: Phase, type_: str) -> None:
    ended = Condition(type=type_, status="True", reason="R", observed_generation=1, last_transition_time=at(-50))
    status = after(1, phase).model_copy(update={"conditions": [ended], "observed_generation": 1})
    assert decide(a_job(status=status), observing(), now=NOW) == Decision(status)
    job = a_job(status=status, ttlSecondsAfterFinished=60)
    assert decide(job, observing(), now=NOW) == Decision(status, requeue_after=10.0)
    assert decide(job, observing(), now=at(10)) == Decision(status, DeleteJob())
    assert decide(job, observing(seen(1, RUNNING)), now=at(10)) == Decision(status, DeleteAttempt(1), 1.0)
    at_once = a_job(status=status, ttlSecondsAfterFinished=0)
    assert decide(at_once, observing(), now=NOW) == Decision(status, DeleteJob())


@pytest.mark.parametrize(
    ("policy", "phase", "action"),
    [
        ({"suspend": True}, Phase.SUSPENDING, DeleteAttempt(1)),
        ({"activeDeadlineSeconds": 59}, Phase.RUNNING, DeleteAttempt(1)),
        ({"progressDeadlineSeconds": 30}, Phase.RUNNING, DeleteAttempt(1)),
        ({"activeDeadlineSeconds": 61, "progressDeadlineSeconds": 50, "retries": 0}, Phase.RUNNING, None),
        ({"ttlSecondsAfterFinished": 0}, Phase.RUNNING, None),
        ({"terminationGracePeriodSeconds": 10}, Phase.RUNNING, None),
    ],
)
def test_an_edited_run_policy_takes_effect_on_the_attempt_that_runs(
    policy: dict[str, int], phase: Phase, action: DeleteAttempt | None
) -> None:
    """By the next pass, which knows nothing of the policy that the attempt began with."""
    before = a_job(status=in_attempt(1, running_since=at(-60)), activeDeadlineSeconds=600, progressDeadlineSeconds=600)
    quiet = observing(seen(1, RUNNING), silent_seconds=40)
    calm = decide(before, quiet, now=NOW)
    assert (calm.status.phase, calm.action) == (Phase.RUNNING, None)
    edited = decide(a_job(status=calm.status, **policy), quiet, now=NOW)
    assert (edited.status.phase, edited.action) == (phase, action)
