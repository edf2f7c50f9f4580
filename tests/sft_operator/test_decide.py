"""What `decide` makes of single moments of a job's life, against literals."""

from typing import Any

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

from sft_operator.lifecycle.conditions import refused
from sft_operator.lifecycle.decide import CreateAttempt, Decision, DeleteAttempt, decide
from sft_operator.lifecycle.observation import AttemptObservation, NodeObservation, NodeState, Trouble
from sft_operator.lifecycle.plan import launch_plan
from sftjob.failure import NEVER_RETRIED, Obstacle, Reason
from sftjob.outcome import Artifact, Outcome
from sftjob.progress import EndBefore, Resolved
from sftjob.receipt import DataReceipt
from sftjob.status import AttemptRecord, AttemptsStatus, Columns, Condition, Phase, SFTJobStatus

RUNNING, PENDING, MISSING = NodeState.RUNNING, NodeState.PENDING, NodeState.MISSING


def condition(type_: Any, status: Any, reason: str, message: str) -> Condition:
    return Condition(
        type=type_, status=status, reason=reason, message=message, observed_generation=1, last_transition_time=NOW
    )


def test_a_new_job_announces_attempt_1_and_creates_it() -> None:
    decision = decide(a_job(), observing(), now=NOW)
    assert decision == Decision(
        SFTJobStatus(
            phase=Phase.STARTING,
            observed_generation=1,
            conditions=[
                condition("Accepted", "True", "Valid", ""),
                condition("Reconciling", "True", "Starting", "attempt 1"),
            ],
            attempts=AttemptsStatus(current=1, started_at=NOW),
        ),
        CreateAttempt(1),
        None,
    )


def test_a_success_is_recorded_whole() -> None:
    receipt = DataReceipt(samples=3, tokens=30, trained_tokens=20, packs=2)
    artifact = Artifact(uri="pvc://models/tuned", format="hf", digest="sha256:01", bytes=1)
    outcome = a_success(
        last_step=20, saved_step=20, data=receipt, artifacts=[artifact], progress=some_progress(step=20)
    )
    decision = decide(a_job(status=in_attempt(1)), observing(seen(1, outcome)), now=NOW)

    assert decision == Decision(
        SFTJobStatus(
            phase=Phase.SUCCEEDED,
            observed_generation=1,
            conditions=[
                condition("Accepted", "True", "Valid", ""),
                condition("CheckpointAvailable", "True", "CheckpointSaved", "step 20"),
                condition("Complete", "True", "Succeeded", "attempt 1"),
            ],
            progress=some_progress(step=20),
            attempts=AttemptsStatus(
                current=1,
                saved_step=20,
                started_at=at(-60),
                history=[
                    AttemptRecord(
                        number=1,
                        reason=Reason.SUCCEEDED,
                        exit_code=0,
                        node_rank=0,
                        last_step=20,
                        saved_step=20,
                        started_at=at(-60),
                        ended_at=NOW,
                    )
                ],
            ),
            data=receipt,
            artifacts=[artifact],
            columns=Columns(progress="20", saved="20"),
        ),
        None,
        None,
    )


def test_the_receipt_of_a_report_is_in_the_status_at_once_and_a_shortened_one_does_not_replace_it() -> None:
    receipt = DataReceipt(samples=3, tokens=30, trained_tokens=20, packs=2, first_bad_lines=["a.jsonl:1: text: no"])
    report = some_progress(step=1)
    running = decide(
        a_job(status=in_attempt(1)),
        observing(seen(1, RUNNING), progress=report.model_copy(update={"data": receipt})),
        now=NOW,
    ).status
    assert (running.data, running.progress) == (receipt, report)
    last_words = a_success(last_step=20, saved_step=20, data=receipt.shortened(), progress=some_progress(step=20))
    ended = decide(a_job(status=running), observing(seen(1, last_words)), now=NOW).status
    assert (ended.phase, ended.data) == (Phase.SUCCEEDED, receipt)
    other = a_success(last_step=20, saved_step=20, data=receipt.shortened().model_copy(update={"samples": 4}))
    assert decide(a_job(status=running), observing(seen(1, other)), now=NOW).status.data.samples == 4


def test_an_announced_attempt_that_was_never_seen_is_created_again_under_its_number() -> None:
    decision = decide(a_job(status=in_attempt(2, Phase.STARTING)), observing(), now=NOW)
    assert summary(decision) == (Phase.STARTING, 2, CreateAttempt(2), None)


def test_an_attempt_that_was_seen_and_is_gone_is_lost_and_never_created_again() -> None:
    decision = decide(a_job(status=in_attempt(2, saved_step=10)), observing(), now=NOW)
    assert summary(decision) == (Phase.RESTARTING, 2, None, 1.0)
    assert decision.status.attempts.history[0].reason is Reason.LAUNCHER_LOST
    assert (decision.status.attempts.failures, decision.status.attempts.disruptions) == (0, 1)


def test_an_attempt_of_which_some_nodes_were_never_created_is_completed() -> None:
    job = a_job(nodes=2, status=in_attempt(1, Phase.STARTING))
    assert summary(decide(job, observing(seen(1, RUNNING, MISSING)), now=NOW)) == (
        Phase.RUNNING,
        1,
        CreateAttempt(1),
        None,
    )


def test_an_attempt_is_pending_until_a_node_runs() -> None:
    job = a_job(nodes=2, status=in_attempt(1, Phase.STARTING))
    assert summary(decide(job, observing(seen(1, PENDING, PENDING)), now=NOW)) == (Phase.STARTING, 1, None, None)
    assert summary(decide(job, observing(seen(1, PENDING, RUNNING)), now=NOW)) == (Phase.RUNNING, 1, None, None)


def test_an_attempt_has_not_ended_while_one_node_lives_and_that_one_is_told_to_go() -> None:
    job = a_job(nodes=2, status=in_attempt(1))
    killed = an_outcome(Reason.RANK_KILLED)
    assert summary(decide(job, observing(seen(1, killed, RUNNING)), now=NOW)) == (
        Phase.RUNNING,
        1,
        DeleteAttempt(1),
        1.0,
    )
    assert summary(decide(job, observing(seen(1, a_success(), RUNNING)), now=NOW)) == (Phase.RUNNING, 1, None, None)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
@pytest.mark.parametrize("rest", [(seen(1, None, an_outcome(Reason.PREEMPTED, node_rank=1, saved_step=7)),), ()])
def test_a_cause_is_kept_by_the_status_when_its_node_is_gone_before_the_others_end(phase: Phase, rest: Any) -> None:
    job = a_job(nodes=2, status=in_attempt(1, phase))
    killed = an_outcome(Reason.RANK_KILLED, rank=0, signal=9, saved_step=5, log_tail="Killed")
    noted = decide(job, observing(seen(1, killed, RUNNING)), now=NOW)
    assert noted.action == DeleteAttempt(1)
    assert noted.status.attempts.history == []
    again = decide(a_job(nodes=2, status=noted.status), observing(seen(1, killed, RUNNING)), now=at(1))
    assert again == noted

    decision = decide(a_job(nodes=2, status=noted.status), observing(*rest), now=at(9))
    attempts = decision.status.attempts
    assert attempts.history == [
        AttemptRecord(
            number=1,
            reason=Reason.RANK_KILLED,
            exit_code=70,
            rank=0,
            signal=9,
            node_rank=0,
            saved_step=7 if rest else 5,
            log_tail="Killed",
            started_at=at(-60),
            ended_at=NOW,
        )
    ]
    assert (attempts.ending, attempts.failures, attempts.disruptions) == (None, 1, 0)


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ([a_success(), an_outcome(Reason.SUCCEEDED, node_rank=1)], Reason.SUCCEEDED),
        ([an_outcome(Reason.SUCCEEDED), an_outcome(Reason.SUCCEEDED, node_rank=1)], Reason.LAUNCHER_LOST),
        ([a_success(), None], Reason.LAUNCHER_LOST),
        ([a_success(), an_outcome(Reason.PREEMPTED, node_rank=1)], Reason.PREEMPTED),
    ],
)
def test_only_a_proven_success_of_all_nodes_is_one(outcomes: list[Any], reason: Reason) -> None:
    decision = decide(a_job(nodes=2, status=in_attempt(1)), observing(seen(1, *outcomes)), now=NOW)
    assert decision.status.attempts.history[0].reason is reason
    assert (decision.status.phase is Phase.SUCCEEDED) == (reason is Reason.SUCCEEDED)
    assert decision.status.attempts.failures == 0


def test_a_script_without_our_trainer_has_succeeded_when_it_ran_to_its_end_on_every_node() -> None:
    job = a_job(nodes=2, status=in_attempt(1), script="pvc://scripts/train.py")
    done, other = an_outcome(Reason.SUCCEEDED, script_completed=True), an_outcome(Reason.SUCCEEDED, node_rank=1)
    decision = decide(job, observing(seen(1, done, other)), now=NOW)
    assert decision.status.phase is Phase.SUCCEEDED
    for outcomes in ((done, None), (done, an_outcome(Reason.RANK_FAILED, node_rank=1)), (None, other)):
        assert decide(job, observing(seen(1, *outcomes)), now=NOW).status.phase is Phase.RESTARTING


@pytest.mark.parametrize(
    ("first", "second", "node_rank"),
    [
        (an_outcome(Reason.PREEMPTED, ended=-9), an_outcome(Reason.RANK_FAILED, node_rank=1, ended=-5), 1),
        (an_outcome(Reason.RANK_FAILED, ended=-9), an_outcome(Reason.RANK_KILLED, node_rank=1, ended=-5), 1),
        (an_outcome(Reason.RANK_FAILED, ended=-5), an_outcome(Reason.RANK_FAILED, node_rank=1, ended=-9), 1),
        (an_outcome(Reason.RANK_FAILED, ended=-9), an_outcome(Reason.RANK_FAILED, node_rank=1, ended=-5), 0),
        (an_outcome(Reason.RANK_KILLED, ended=-9), an_outcome(Reason.INVALID_DATA, node_rank=1, ended=-5), 1),
        (an_outcome(Reason.RANK_FAILED, ended=-9), None, 1),
        (an_outcome(Reason.OUT_OF_MEMORY, ended=-9), None, 0),
        (None, an_outcome(Reason.PREEMPTED, node_rank=1, ended=-5), 0),
    ],
)
def test_the_cause_is_told_by_the_node_that_explains_most(first: Any, second: Any, node_rank: int) -> None:
    decision = decide(a_job(nodes=2, status=in_attempt(1)), observing(seen(1, first, second)), now=NOW)
    assert decision.status.attempts.history[0].node_rank == node_rank


@pytest.mark.parametrize("reason", sorted(NEVER_RETRIED))
def test_what_would_fail_again_ends_the_job_at_once(reason: Reason) -> None:
    decision = decide(
        a_job(status=in_attempt(1)), observing(seen(1, an_outcome(reason, message="chats.jsonl:3: ..."))), now=NOW
    )
    assert summary(decision) == (Phase.FAILED, 1, None, None)
    assert failed(decision) == (reason.value, "chats.jsonl:3: ...")


def test_a_failure_uses_up_a_retry_and_the_last_one_names_its_cause() -> None:
    ended = observing(seen(1, an_outcome(Reason.RANK_KILLED, message="rank 1 was killed")))
    assert summary(decide(a_job(status=in_attempt(1), retries=1), ended, now=NOW))[0] is Phase.RESTARTING
    decision = decide(a_job(status=in_attempt(1), retries=0), ended, now=NOW)
    assert failed(decision) == (
        "RetriesExhausted",
        "1 failure, 0 retries allowed; RankKilled: rank 1 was killed",
    )


def test_a_preempted_attempt_does_not_use_up_a_retry() -> None:
    ended = observing(seen(1, an_outcome(Reason.PREEMPTED)))
    assert summary(decide(a_job(status=in_attempt(1), retries=0), ended, now=NOW))[0] is Phase.RESTARTING
    decision = decide(a_job(status=in_attempt(1), disruptionRetries=0), ended, now=NOW)
    assert failed(decision) == ("DisruptionRetriesExhausted", "1 disruption, 0 retries allowed; Preempted")


@pytest.mark.parametrize("reason", [Reason.OUT_OF_MEMORY, Reason.GPU_OUT_OF_MEMORY])
def test_an_attempt_that_memory_was_too_small_for_is_counted_in_the_next_ones_plan(reason: Reason) -> None:
    job = a_job(status=in_attempt(2, shortages=1))
    for ended, shortages in ((reason, 2), (Reason.LOAD_OUT_OF_MEMORY, 1), (Reason.RANK_KILLED, 1)):
        status = decide(job, observing(seen(2, an_outcome(ended, attempt=2))), now=NOW).status
        plan = launch_plan(job.model_copy(update={"status": status}), 3, path_of=str)
        assert plan.shortages == status.attempts.shortages == shortages


def test_three_attempts_without_a_newer_checkpoint_end_the_job() -> None:
    job = a_job(status=in_attempt(3, saved_step=10, without_progress=2))
    decision = decide(job, observing(seen(3, an_outcome(Reason.PREEMPTED, attempt=3, saved_step=10))), now=NOW)
    assert failed(decision) == ("NoProgress", "3 attempts in a row without a newer checkpoint; Preempted")
    decision = decide(job, observing(seen(3, an_outcome(Reason.PREEMPTED, attempt=3, saved_step=11))), now=NOW)
    assert summary(decision) == (Phase.RESTARTING, 3, None, 1.0)
    assert (decision.status.attempts.without_progress, decision.status.attempts.saved_step) == (0, 11)
    decision = decide(job, observing(seen(3, an_outcome(Reason.INVALID_DATA, attempt=3))), now=NOW)
    assert failed(decision)[0] == "InvalidData"


@pytest.mark.parametrize(
    ("resumed_from", "saved_step", "without_progress", "kept"),
    [
        (None, 2, 0, 2),
        (600, 700, 0, 700),
        (600, 800, 0, 800),
        (600, 600, 2, 600),
        (None, 800, 2, 800),
        (800, None, 2, 800),
    ],
)
def test_where_checkpoints_are_gone_progress_is_what_was_saved_beyond_the_start(
    resumed_from: int | None, saved_step: int | None, without_progress: int, kept: int
) -> None:
    job = a_job(status=in_attempt(2, saved_step=800, without_progress=1))
    outcome = an_outcome(Reason.RANK_KILLED, attempt=2, resumed_from=resumed_from, saved_step=saved_step)
    attempts = decide(job, observing(seen(2, outcome)), now=NOW).status.attempts
    assert (attempts.without_progress, attempts.saved_step) == (without_progress, kept)


def test_attempts_that_the_cluster_took_away_before_they_ran_say_nothing_about_progress() -> None:
    """A node that refuses its pods, or is drained while they are created: each is a disruption, and they wait."""
    status = SFTJobStatus()
    waits = []
    for number in range(1, 5):
        outcome = an_outcome(Reason.PREEMPTED, attempt=number, message="OutOfcpu: no room")
        outcome = outcome.model_copy(update={"exit_code": None})
        status = decide(a_job(status=status), observing(), now=NOW).status
        decision = decide(a_job(status=status), observing(seen(number, outcome)), now=NOW)
        waits.append(decision.requeue_after)
        status = decision.status
        status = status.model_copy(update={"attempts": status.attempts.model_copy(update={"next_at": None})})
    assert waits == [10, 20, 40, 80]
    assert status.phase is Phase.RESTARTING
    assert (status.attempts.disruptions, status.attempts.without_progress) == (4, 0)
    last = status.attempts.history[0]
    assert (last.reason, last.exit_code) == (Reason.NOT_STARTED, None)
    assert last.message == "Preempted before it ran: OutOfcpu: no room"


def test_a_node_whose_gpus_are_all_broken_is_avoided_and_says_nothing_about_progress() -> None:
    outcome = an_outcome(Reason.GPU_FAULT).model_copy(update={"exit_code": None})
    (rank,) = (NodeObservation(0, NodeState.ENDED, outcome, pod="tiny-a1-worker-0", node="gpu-7"),)
    decision = decide(a_job(status=in_attempt(1, Phase.STARTING)), observing(AttemptObservation(1, (rank,))), now=NOW)
    attempts = decision.status.attempts
    assert (attempts.avoided_nodes, attempts.disruptions, attempts.without_progress) == (["gpu-7"], 1, 0)


def test_a_node_that_is_lost_while_its_attempt_runs_counts_as_no_progress_though_no_container_ended() -> None:
    lost = an_outcome(Reason.NODE_LOST).model_copy(update={"exit_code": None})
    status = in_attempt(1, running_since=at(-50))
    assert decide(a_job(status=status), observing(seen(1, lost)), now=NOW).status.attempts.without_progress == 1


def test_a_script_that_never_showed_a_checkpoint_is_ended_by_its_budgets_alone() -> None:
    """What it keeps itself nobody sees; with our Trainer in it, it is judged as any job."""
    ended = observing(seen(3, an_outcome(Reason.PREEMPTED, attempt=3)))
    status = in_attempt(3, without_progress=2)
    decision = decide(a_job(status=status, script="pvc://scripts/train.py"), ended, now=NOW)
    assert decision.status.phase is Phase.RESTARTING
    status = in_attempt(3, without_progress=2, saved_step=10)
    decision = decide(a_job(status=status, script="pvc://scripts/train.py"), ended, now=NOW)
    assert failed(decision)[0] == "NoProgress"


def test_a_lost_launchers_last_report_counts_as_its_progress() -> None:
    status = in_attempt(2, saved_step=10, without_progress=1).model_copy(
        update={"progress": some_progress(attempt=2, step=24, saved_step=20, resumed_from=10)}
    )
    decision = decide(a_job(status=status), observing(seen(2, None)), now=NOW)
    assert decision.status.attempts.history[0] == AttemptRecord(
        number=2,
        reason=Reason.LAUNCHER_LOST,
        node_rank=0,
        message="the launcher of node 0 ended without a word",
        resumed_from=10,
        last_step=24,
        saved_step=20,
        lost_steps=4,
        started_at=at(-60),
        ended_at=NOW,
    )
    assert decision.status.attempts.without_progress == 0


@pytest.mark.parametrize(
    ("seen_as", "number", "reason"),
    [
        (Reason.LAUNCHER_LOST, 1, Reason.RANK_KILLED),
        (Reason.LAUNCHER_LOST, 7, Reason.LAUNCHER_LOST),
        (Reason.NODE_LOST, 1, Reason.NODE_LOST),
        (Reason.RANK_FAILED, 1, Reason.RANK_KILLED),
    ],
)
def test_what_an_attempt_that_nobody_saw_end_left_in_storage_is_told_by_the_next(
    seen_as: Reason, number: int, reason: Reason
) -> None:
    lost = AttemptRecord(number=1, reason=seen_as, message="as it seemed", saved_step=4, ended_at=at(-30))
    status = in_attempt(2).model_copy(
        update={"attempts": in_attempt(2).attempts.model_copy(update={"history": [lost], "disruptions": 1})}
    )
    end = EndBefore(
        attempt=number,
        node_rank=1,
        reason=Reason.RANK_KILLED,
        exit_code=70,
        message="rank 3 was killed",
        rank=3,
        signal=9,
        log_tail="x" * 2000,
        ended_at=at(-90),
    )
    told = observing(seen(2, RUNNING), progress=some_progress(attempt=2, end_before=end))
    after_it = decide(a_job(status=status), told, now=NOW).status
    (record,) = after_it.attempts.history
    assert (record.reason, record.saved_step, after_it.attempts.disruptions) == (reason, 4, 1)
    if reason is Reason.RANK_KILLED:
        assert (record.rank, record.signal, record.node_rank, record.exit_code) == (3, 9, 1, 70)
        assert (record.message, record.log_tail, record.ended_at) == ("rank 3 was killed", "x" * 600, at(-90))
    else:
        assert record == lost
    assert after_it.progress is not None
    assert after_it.progress.end_before is None


@pytest.mark.parametrize(("without_progress", "seconds"), [(0, 1), (1, 10)])
def test_attempts_are_spaced_further_while_nothing_is_saved(without_progress: int, seconds: float) -> None:
    status = in_attempt(2, saved_step=10, without_progress=without_progress)
    decision = decide(a_job(status=status), observing(seen(2, None)), now=NOW)
    assert decision.requeue_after == seconds
    assert decision.status.attempts.next_at == at(seconds)


def test_the_next_attempt_waits_for_its_time() -> None:
    job = a_job(status=after(1, next_at=at(7)))
    assert summary(decide(job, observing(), now=NOW)) == (Phase.RESTARTING, 1, None, 7.0)
    assert summary(decide(job, observing(), now=at(7))) == (Phase.STARTING, 2, CreateAttempt(2), None)


def test_nothing_is_created_while_an_attempt_that_is_not_current_lives() -> None:
    zombie = seen(1, RUNNING)
    for status in (after(2), in_attempt(2, Phase.STARTING), in_attempt(2)):
        decision = decide(a_job(status=status), observing(zombie, seen(2, RUNNING)), now=NOW)
        assert decision.action in (DeleteAttempt(1), DeleteAttempt(2))
    assert decide(a_job(status=after(1)), observing(zombie), now=NOW).action == DeleteAttempt(1)
    assert decide(a_job(status=in_attempt(2, Phase.STARTING)), observing(zombie), now=NOW).action == DeleteAttempt(1)


def test_what_is_left_of_an_attempt_that_has_ended_keeps_the_next_one_from_nothing() -> None:
    """Its pod may stay for as long as its node is lost, and the next attempt's first creation may fail."""
    ended, dying = seen(1, None), seen(1, None, is_deleting=True)
    for left in (ended, dying):
        announced = decide(a_job(status=after(1)), observing(left), now=NOW)
        assert summary(announced) == (Phase.STARTING, 2, CreateAttempt(2), None)
        again = decide(a_job(status=announced.status), observing(left), now=at(1))
        assert summary(again) == (Phase.STARTING, 2, CreateAttempt(2), None)
    waits = a_job(status=announced.status)
    assert summary(decide(waits, observing(ended, seen(2, PENDING)), now=at(2)))[2:] == (DeleteAttempt(1), 1.0)
    assert summary(decide(waits, observing(dying, seen(2, PENDING)), now=at(2)))[2:] == (None, None)


def test_a_suspension_saves_stops_and_costs_nothing() -> None:
    job = a_job(status=in_attempt(1), suspend=True)
    assert summary(decide(job, observing(seen(1, RUNNING)), now=NOW)) == (Phase.SUSPENDING, 1, DeleteAttempt(1), 1.0)
    ending = a_job(status=in_attempt(1, Phase.SUSPENDING), suspend=True)
    assert summary(decide(ending, observing(seen(1, RUNNING, is_deleting=True)), now=NOW))[0] is Phase.SUSPENDING
    decision = decide(ending, observing(seen(1, an_outcome(Reason.PREEMPTED, saved_step=4))), now=NOW)
    assert summary(decision) == (Phase.SUSPENDED, 1, None, None)
    attempts = decision.status.attempts
    assert (attempts.failures, attempts.disruptions, attempts.without_progress) == (0, 0, 0)
    assert attempts.history[0].reason is Reason.PREEMPTED


def test_a_job_that_is_not_suspended_any_more_starts_the_next_attempt() -> None:
    assert summary(decide(a_job(status=after(1, Phase.SUSPENDED)), observing(), now=NOW)) == (
        Phase.STARTING,
        2,
        CreateAttempt(2),
        None,
    )


def test_an_attempt_that_was_told_to_go_goes_even_if_the_suspension_is_taken_back() -> None:
    job = a_job(status=in_attempt(1, Phase.SUSPENDING))
    assert summary(decide(job, observing(seen(1, RUNNING)), now=NOW)) == (Phase.SUSPENDING, 1, DeleteAttempt(1), 1.0)


def test_a_held_attempt_that_was_told_to_go_is_not_queued_again_and_costs_nothing() -> None:
    job = a_job(queue="team-a", status=in_attempt(1, Phase.SUSPENDING))
    held = seen(1, PENDING, is_deleting=True, is_suspended=True)
    decision = decide(job, observing(held), now=NOW)
    assert summary(decision) == (Phase.SUSPENDING, 1, DeleteAttempt(1), 1.0)
    gone = decide(a_job(queue="team-a", status=decision.status), observing(), now=at(1)).status
    assert (gone.attempts.disruptions, gone.attempts.without_progress) == (0, 0)


@pytest.mark.parametrize("reason", [Reason.SUCCEEDED, Reason.RANK_KILLED])
def test_a_pod_whose_sidecar_outlives_its_launcher_is_taken_away_though_its_logs_go_with_it(reason: Reason) -> None:
    outcome = a_success() if reason is Reason.SUCCEEDED else an_outcome(reason)
    nodes = (NodeObservation(0, NodeState.ENDED, outcome, pod="worker-0", lingers=True),)
    status, phases = in_attempt(1), []
    for _ in range(2):
        decision = decide(a_job(status=status), observing(AttemptObservation(1, nodes)), now=NOW)
        assert decision.action == DeleteAttempt(1)
        status = decision.status
        phases.append(status.phase)
    ended = Phase.SUCCEEDED if reason is Reason.SUCCEEDED else Phase.RESTARTING
    assert phases == [ended, ended]


def test_what_kept_an_attempt_from_starting_is_forgotten_by_a_suspension() -> None:
    trouble = Trouble(Obstacle.PYTORCH_JOBS_MISSING, "install it")
    stalled = decide(a_job(status=in_attempt(1, Phase.STARTING)), observing(trouble=trouble), now=NOW).status
    assert [c.status for c in stalled.conditions if c.type == "Stalled"] == ["True"]
    decision = decide(a_job(status=stalled, suspend=True), observing(trouble=trouble), now=NOW)
    assert summary(decision) == (Phase.SUSPENDED, 1, None, None)
    assert [c.status for c in decision.status.conditions if c.type == "Stalled"] == ["False"]


def test_columns_show_no_stage_of_an_earlier_attempt() -> None:
    before = some_progress(attempt=1, step=4).model_copy(update={"total_steps": 10, "eta_seconds": 60})
    job = a_job(status=in_attempt(2).model_copy(update={"progress": before}))
    columns = decide(job, observing(seen(2, RUNNING)), now=NOW).status.columns
    assert (columns.progress, columns.eta) == ("4/10", "")
    own = before.model_copy(update={"attempt": 2})
    columns = decide(job, observing(seen(2, RUNNING), progress=own), now=NOW).status.columns
    assert (columns.progress, columns.eta) == ("Training 4/10", "1m")


def test_a_suspension_before_the_attempt_was_created_leaves_a_record_of_its_number() -> None:
    job = a_job(status=in_attempt(1, Phase.STARTING), suspend=True)
    decision = decide(job, observing(), now=NOW)
    assert summary(decision) == (Phase.SUSPENDED, 1, None, None)
    assert decision.status.attempts.history[0].message == "suspended before it started"


def test_an_attempt_is_asked_to_end_until_it_goes_by_itself() -> None:
    """A pod of it that somebody deleted is no word to the others; and a launcher that outlives its grace is killed."""
    job = a_job(status=in_attempt(1, Phase.SUSPENDING), suspend=True)
    asked = decide(job, observing(seen(1, RUNNING, is_deleting=True)), now=NOW)
    assert summary(asked) == (Phase.SUSPENDING, 1, DeleteAttempt(1), 1.0)
    awaited = decide(job, observing(seen(1, RUNNING, is_deleting=True, goes_by_itself=True)), now=NOW)
    assert summary(awaited) == (Phase.SUSPENDING, 1, None, 1.0)


def test_a_success_during_a_suspension_is_one() -> None:
    job = a_job(status=in_attempt(1, Phase.SUSPENDING), suspend=True)
    assert summary(decide(job, observing(seen(1, a_success())), now=NOW))[0] is Phase.SUCCEEDED


def test_a_final_phase_only_cleans_up() -> None:
    for phase in (Phase.SUCCEEDED, Phase.FAILED):
        status = after(2, phase).model_copy(update={"observed_generation": 1})
        assert decide(a_job(status=status), observing(seen(2, None)), now=NOW) == Decision(status)
        assert decide(a_job(status=status), observing(seen(1, RUNNING)), now=NOW) == Decision(
            status, DeleteAttempt(1), 1.0
        )
        # Its run policy may still be edited, and whoever waits for the object reads which version was seen.
        unseen = status.model_copy(update={"observed_generation": 0})
        assert decide(a_job(status=unseen), observing(), now=NOW) == Decision(status)


@pytest.mark.parametrize(("outcome", "end"), [(a_success(), "Complete"), (an_outcome(Reason.INVALID_DATA), "Failed")])
def test_who_waits_for_the_end_of_a_job_gets_it_also_once_its_run_policy_was_edited(outcome: Outcome, end: str) -> None:
    """`kubectl wait` passes over a condition whose own generation is below that of the object."""
    finished = decide(a_job(status=in_attempt(1)), observing(seen(1, outcome)), now=NOW).status
    edited = a_job(status=finished)
    edited = edited.model_copy(update={"metadata": edited.metadata.model_copy(update={"generation": 2})})
    decision = decide(edited, observing(), now=at(60))
    assert (decision.action, decision.status.observed_generation) == (None, 2)
    waited_for = {c.type: c for c in decision.status.conditions}[end]
    assert (waited_for.status, waited_for.observed_generation, waited_for.last_transition_time) == ("True", 2, NOW)
    assert {c.observed_generation for c in decision.status.conditions} == {2}
    again = edited.model_copy(update={"status": decision.status})
    assert decide(again, observing(), now=at(120)).status == decision.status


@pytest.mark.parametrize(("outcome", "end"), [(a_success(), "Complete"), (an_outcome(Reason.INVALID_DATA), "Failed")])
def test_a_finished_job_that_another_version_had_refused_is_as_it_was(outcome: Outcome, end: str) -> None:
    finished = decide(a_job(status=in_attempt(1)), observing(seen(1, outcome)), now=NOW).status
    marked = refused(finished, message="spec.x: unknown", generation=1, now=at(30))
    assert {c.type: c.status for c in marked.conditions}["Accepted"] == "False"
    healed = decide(a_job(status=marked), observing(), now=at(60)).status

    def told(status: SFTJobStatus) -> dict[str, tuple[str, str, str]]:
        return {c.type: (c.status, c.reason, c.message) for c in status.conditions if c.status == "True"}

    assert told(healed) == told(finished)
    assert {c.type: c.last_transition_time for c in healed.conditions}[end] == NOW


@pytest.mark.parametrize(
    ("report", "is_taken"),
    [
        (some_progress(attempt=2, step=6, seconds=10), True),
        (some_progress(attempt=2, step=6, seconds=3), False),
        (some_progress(attempt=2, step=6, seconds=3, saved_step=6), True),
        (some_progress(attempt=2, step=4, seconds=60), False),
        (some_progress(attempt=1, step=99, seconds=60), False),
        (some_progress(attempt=3, step=99, seconds=60), False),
    ],
)
def test_progress_is_of_the_current_attempt_never_falls_and_is_not_written_at_every_step(
    report: Any, is_taken: bool
) -> None:
    before = some_progress(attempt=2, step=5)
    status = in_attempt(2).model_copy(update={"progress": before})
    decision = decide(a_job(status=status), observing(seen(2, RUNNING), progress=report), now=NOW)
    assert decision.status.progress == (report if is_taken else before)


def test_what_was_found_at_a_hub_has_its_own_place_in_the_status_and_stays_there() -> None:
    resolved = Resolved(model_revision="c0ffee")
    first = some_progress(attempt=1, step=0, resolved=resolved)
    decision = decide(a_job(status=in_attempt(1)), observing(seen(1, RUNNING), progress=first), now=NOW)
    assert (decision.status.resolved, decision.status.progress) == (resolved, some_progress(attempt=1, step=0))
    silent = an_outcome(Reason.RANK_KILLED, progress=some_progress(attempt=1, step=1, seconds=20))
    decision = decide(a_job(status=decision.status), observing(seen(1, silent)), now=NOW)
    assert decision.status.resolved == resolved
    told = an_outcome(Reason.RANK_KILLED, progress=first)
    decision = decide(a_job(status=in_attempt(1)), observing(seen(1, told)), now=NOW)
    assert (decision.status.resolved, decision.status.progress) == (resolved, some_progress(attempt=1, step=0))


def test_a_resumed_attempt_reports_from_a_lower_step() -> None:
    status = in_attempt(2).model_copy(update={"progress": some_progress(attempt=1, step=14)})
    report = some_progress(attempt=2, step=11, seconds=1)
    assert decide(a_job(status=status), observing(seen(2, RUNNING), progress=report), now=NOW).status.progress == report


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    running = decide(a_job(status=in_attempt(1)), observing(seen(1, RUNNING)), now=NOW).status
    assert running.conditions[1].type == "Running"
    later = decide(a_job(status=running), observing(seen(1, RUNNING)), now=at(60)).status
    assert later == running
    lost = decide(a_job(status=running), observing(), now=at(60)).status
    assert (lost.conditions[1].status, lost.conditions[1].last_transition_time) == ("False", at(60))


def test_the_history_is_bounded_and_newest_first() -> None:
    decision = decide(a_job(status=in_attempt(12, saved_step=10)), observing(seen(12, None)), now=NOW)
    assert [record.number for record in decision.status.attempts.history] == [12, 11, 10, 9, 8, 7, 6, 5, 4, 3]


@pytest.mark.parametrize(
    "outcome",
    [
        an_outcome(
            Reason.RANK_FAILED, message="torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"
        ),
        an_outcome(
            Reason.RANK_KILLED,
            signal=6,
            log_tail="CUDA error: uncorrectable NVLink error detected during the execution\nterminate called",
        ),
    ],
)
def test_a_node_whose_gpu_is_broken_is_avoided_and_costs_a_disruption(outcome: Outcome) -> None:
    status = in_attempt(1, avoided_nodes=["node-7"])
    broken = NodeObservation(0, NodeState.ENDED, outcome, pod="tiny-a1-worker-0", node="node-3")
    lost_its_peer = an_outcome(Reason.RANK_FAILED, node_rank=1, ended=-30)
    other = NodeObservation(1, NodeState.ENDED, lost_its_peer, pod="tiny-a1-worker-1", node="node-4")
    decision = decide(a_job(nodes=2, status=status), observing(AttemptObservation(1, (broken, other))), now=NOW)
    attempts = decision.status.attempts
    assert (attempts.history[0].reason, attempts.history[0].node) == (Reason.GPU_FAULT, "node-3")
    assert (attempts.failures, attempts.disruptions) == (0, 1)
    assert attempts.avoided_nodes == ["node-3", "node-7"]


@pytest.mark.parametrize(
    "outcome",
    [
        an_outcome(Reason.RANK_FAILED, message="CUDA error: device-side assert triggered"),
        an_outcome(Reason.RANK_FAILED, message="CUDA error: an illegal memory access was encountered"),
        an_outcome(Reason.RANK_KILLED, signal=7, message="rank 0 was ended by SIGBUS"),
        an_outcome(Reason.INVALID_DATA, message="line 3: uncorrectable ECC error encountered"),
    ],
)
def test_what_a_program_can_bring_about_too_is_no_fault_of_a_gpu(outcome: Outcome) -> None:
    ended = NodeObservation(0, NodeState.ENDED, outcome, node="node-3")
    decision = decide(a_job(status=in_attempt(1)), observing(AttemptObservation(1, (ended,))), now=NOW)
    assert decision.status.attempts.history[0].reason is outcome.reason
    assert decision.status.attempts.avoided_nodes == []


def test_the_avoided_nodes_are_bounded_and_a_suspension_forgets_them() -> None:
    known = [f"node-{n}" for n in range(8)]
    status = in_attempt(1, avoided_nodes=known)
    fault = an_outcome(Reason.RANK_FAILED, message="uncorrectable ECC error encountered")

    def avoided_after(node: str) -> list[str]:
        ended = AttemptObservation(1, (NodeObservation(0, NodeState.ENDED, fault, node=node),))
        return decide(a_job(status=status), observing(ended), now=NOW).status.attempts.avoided_nodes

    assert avoided_after("node-9") == ["node-9", *known[:7]]
    assert avoided_after("node-5") == ["node-5", *(node for node in known if node != "node-5")]
    suspended = a_job(status=after(1, avoided_nodes=known), suspend=True)
    assert decide(suspended, observing(), now=NOW).status.attempts.avoided_nodes == []
