"""Jobs of a queue: they wait without a time of their own, and go on elsewhere when they are taken back."""

from typing import Any

import pytest
from cluster_objects import pod, pytorch_job
from jobs import NOW, a_job, a_success, an_outcome, at, in_attempt, observing, seen, summary

from sft_operator.kubernetes import observe
from sft_operator.kubernetes.queued import reason_of
from sft_operator.lifecycle.decide import CreateAttempt, Decision, DeleteAttempt, decide
from sft_operator.lifecycle.observation import NodeState, Observation
from sftjob.failure import Reason
from sftjob.job import SFTJob
from sftjob.status import Phase, SFTJobStatus

RUNNING, PENDING = NodeState.RUNNING, NodeState.PENDING
WORDS = "couldn't assign flavors to pod set worker: insufficient unused quota for cpu in flavor default, 1 more needed"


def queued(status: SFTJobStatus, **policy: int) -> SFTJob:
    return a_job(status=status, queue="team-a", **policy)


def doing(decision: Decision) -> tuple[str, str, str]:
    found = next(condition for condition in decision.status.conditions if condition.type == "Reconciling")
    return found.status, found.reason, found.message


def held(number: int, *, deleting: bool = False) -> dict[str, Any]:
    """A PyTorchJob that is suspended."""
    found = pytorch_job(number, deleting=deleting)
    found["spec"]["runPolicy"]["suspend"] = True
    return found


def observed(
    job: SFTJob, *pytorch_jobs: dict[str, Any], pods: tuple[Any, ...] = (), gone: tuple[Any, ...] = (), words: str = ""
) -> Observation:
    found = observe.attempts(job, pytorch_jobs=pytorch_jobs, pods=pods, gone_pods=gone, held_pods=set())
    return Observation(found, queue_message=words)


def test_an_attempt_waits_for_its_queue_as_long_as_it_takes_and_says_why() -> None:
    job = queued(in_attempt(1, Phase.STARTING), startDeadlineSeconds=10)
    held = seen(1, PENDING, is_suspended=True)
    waits = decide(job, observing(held, queue_message=WORDS), now=at(3600))
    assert summary(waits) == (Phase.QUEUED, 1, None, None)
    assert doing(waits) == ("True", "Queued", WORDS)
    again = decide(queued(waits.status, startDeadlineSeconds=10), observing(held, queue_message=WORDS), now=at(7200))
    assert again.status == waits.status, "nothing is written while nothing changes"


def test_the_time_to_start_begins_when_the_queue_lets_the_attempt_run() -> None:
    waiting = in_attempt(1, Phase.QUEUED)
    let_go = decide(queued(waiting, startDeadlineSeconds=70), observing(seen(1, PENDING)), now=at(3600))
    assert summary(let_go) == (Phase.STARTING, 1, None, 70.0)
    assert let_go.status.attempts.started_at == at(3600)
    runs = decide(queued(let_go.status, startDeadlineSeconds=70), observing(seen(1, RUNNING)), now=at(3605))
    assert summary(runs) == (Phase.RUNNING, 1, None, None)


def test_an_attempt_that_its_queue_takes_back_is_a_disruption_and_the_next_one_waits_in_the_queue() -> None:
    running = queued(in_attempt(1, running_since=at(-60)))
    preempted = "Preempted to accommodate a workload of higher priority"
    # Its pods are gone already, and nobody saw their end.
    taken = decide(running, observing(seen(1, PENDING, is_suspended=True), queue_message=preempted), now=NOW)
    assert summary(taken) == (Phase.RUNNING, 1, DeleteAttempt(1), 1.0)
    assert taken.status.attempts.ending is not None
    again = decide(queued(taken.status), observing(seen(1, PENDING, is_suspended=True)), now=at(1))
    assert again.status.attempts.ending == taken.status.attempts.ending

    ended = decide(queued(again.status), observing(), now=at(2))
    assert summary(ended) == (Phase.RESTARTING, 1, None, 1.0)
    (record,) = ended.status.attempts.history
    assert (record.reason, record.message) == (Reason.PREEMPTED, f"somebody else suspended the attempt: {preempted}")
    assert (ended.status.attempts.disruptions, ended.status.attempts.failures) == (1, 0)
    following = decide(queued(ended.status), observing(), now=at(3))
    assert following.action == CreateAttempt(2)
    waits = decide(queued(following.status), observing(seen(2, PENDING, is_suspended=True)), now=at(4))
    assert summary(waits) == (Phase.QUEUED, 2, None, None)


def test_what_was_saved_by_pods_that_the_queue_ended_is_known() -> None:
    running = queued(in_attempt(1, running_since=at(-60)))
    saves = decide(running, observing(seen(1, RUNNING, is_suspended=True, is_deleting=True)), now=NOW)
    assert summary(saves) == (Phase.RUNNING, 1, DeleteAttempt(1), 1.0)
    saved = an_outcome(Reason.PREEMPTED, ended=5, saved_step=30, last_step=30)
    ended = decide(queued(saves.status), observing(seen(1, saved, is_suspended=True)), now=at(6))
    assert ended.status.attempts.history[0].saved_step == 30
    assert ended.status.attempts.without_progress == 0


def test_an_attempt_without_a_queue_that_somebody_suspends_is_ended_and_begun_anew() -> None:
    job = a_job(status=in_attempt(1, running_since=at(-60)))
    assert summary(decide(job, observing(seen(1, PENDING, is_suspended=True)), now=NOW)) == (
        Phase.RUNNING,
        1,
        DeleteAttempt(1),
        1.0,
    )


def test_an_attempt_that_is_held_back_from_its_birth_waits_though_its_job_names_no_queue() -> None:
    """A LocalQueue named `default` takes up what names none; Kueue may also hold back whatever names none."""
    job = a_job(status=in_attempt(1, Phase.STARTING), startDeadlineSeconds=10)
    waits = decide(job, observed(job, held(1), words=WORDS), now=at(3600))
    assert summary(waits) == (Phase.QUEUED, 1, None, None)
    assert doing(waits) == ("True", "Queued", WORDS)
    job = a_job(status=waits.status)
    let_go = decide(job, observed(job, pytorch_job(1), pods=(pod(1),)), now=at(7200))
    assert summary(let_go)[:3] == (Phase.RUNNING, 1, None)


@pytest.mark.parametrize("queue", ["team-a", None])
@pytest.mark.parametrize("seen_to_go", ["none", "one", "both"])
def test_an_attempt_that_is_taken_back_before_its_pods_ran_is_told_so_and_says_nothing_about_progress(
    queue: str | None, seen_to_go: str
) -> None:
    """Its pods were pulling their images; of some of them nobody saw more than that they are gone."""
    evicted = "Exceeded the PodsReady timeout default/tiny"
    job = a_job(nodes=2, queue=queue, status=in_attempt(1, Phase.STARTING))

    def one_pass(observation: Observation, seconds: float) -> Decision:
        nonlocal job
        decision = decide(job, observation, now=at(seconds))
        job = job.model_copy(update={"status": decision.status})
        return decision

    for number in range(1, 6):
        begin = number * 1000.0
        waiting = [pod(number, rank, "Pending") for rank in (0, 1)]
        dying = [pod(number, rank, "Pending", deleted="2026-01-01T12:00:30Z") for rank in (0, 1)]
        one_pass(observed(job, pytorch_job(number), pods=(*waiting,)), begin)
        assert job.status.phase is Phase.STARTING
        visible = {"none": 0, "one": 1, "both": 2}[seen_to_go]
        if visible:
            here, gone = tuple(dying[2 - visible :]), tuple(dying[: 2 - visible])
            taken = one_pass(observed(job, held(number), pods=here, gone=gone, words=evicted), begin + 1)
            assert taken.action == DeleteAttempt(number)
            one_pass(observed(job, held(number, deleting=True), gone=(*dying,)), begin + 2)
        else:
            one_pass(observed(job, held(number), gone=(*dying,), words=evicted), begin + 2)
        attempts = job.status.attempts
        assert (attempts.history[0].reason, attempts.history[0].message) == (
            Reason.NOT_STARTED,
            f"somebody else suspended the attempt before it ran: {evicted}",
        )
        assert (attempts.disruptions, attempts.failures, attempts.without_progress) == (number, 0, 0)
        assert one_pass(observed(job), begin + 500).action == CreateAttempt(number + 1)


def test_a_pod_that_waits_beside_an_old_word_of_its_queue_is_left_alone() -> None:
    """Each kind has a watch of its own: that the attempt was let go may be heard after its pod."""
    job = queued(in_attempt(1, Phase.QUEUED))
    seen_early = observed(job, held(1), pods=(pod(1, 0, "Pending"),))
    assert summary(decide(job, seen_early, now=NOW)) == (Phase.QUEUED, 1, None, None)


def test_an_attempt_that_ran_unseen_and_was_taken_back_counts_by_what_it_saved() -> None:
    saved = an_outcome(Reason.PREEMPTED, ended=-5, saved_step=30, last_step=30)
    ended = decide(queued(in_attempt(1, Phase.STARTING)), observing(seen(1, saved, is_suspended=True)), now=NOW)
    (record,) = ended.status.attempts.history
    assert (record.reason, record.saved_step) == (Reason.PREEMPTED, 30)


def test_a_user_s_suspension_in_the_queue_is_told_as_one() -> None:
    waits = queued(in_attempt(1, Phase.QUEUED), suspend=True)
    leaves = decide(waits, observed(waits, held(1), words=WORDS), now=NOW)
    assert summary(leaves) == (Phase.SUSPENDING, 1, DeleteAttempt(1), 1.0)
    job = queued(leaves.status, suspend=True)
    gone = decide(job, observed(job, held(1, deleting=True)), now=at(1))
    assert summary(gone) == (Phase.SUSPENDED, 1, None, None)
    (record,) = gone.status.attempts.history
    assert (record.reason, record.message) == (Reason.PREEMPTED, "suspended before it started")
    assert (gone.status.attempts.disruptions, gone.status.attempts.without_progress) == (0, 0)


def test_a_queue_that_takes_back_what_its_user_suspends_is_not_told_as_the_cause() -> None:
    job = queued(in_attempt(1, Phase.SUSPENDING), suspend=True)
    dying = pod(1, 0, "Pending", deleted="2026-01-01T12:00:30Z")
    leaves = decide(job, observed(job, held(1, deleting=True), pods=(dying,), words=WORDS), now=NOW)
    assert leaves.status.attempts.ending is None
    job = queued(leaves.status, suspend=True)
    gone = decide(job, observed(job, held(1, deleting=True), gone=(dying,)), now=at(1))
    assert gone.status.attempts.history[0].message == "suspended before it started"


def test_a_user_s_suspension_takes_a_job_out_of_its_queue() -> None:
    job = queued(in_attempt(1, Phase.QUEUED), suspend=True)
    leaves = decide(job, observing(seen(1, PENDING, is_suspended=True)), now=NOW)
    assert summary(leaves) == (Phase.SUSPENDING, 1, DeleteAttempt(1), 1.0)
    gone = decide(queued(leaves.status, suspend=True), observing(), now=at(1))
    assert summary(gone) == (Phase.SUSPENDED, 1, None, None)
    assert gone.status.attempts.disruptions == 0


def test_an_attempt_of_a_queue_that_has_succeeded_has_succeeded() -> None:
    job = queued(in_attempt(1, running_since=at(-60)))
    assert decide(job, observing(seen(1, a_success())), now=NOW).status.phase is Phase.SUCCEEDED


def test_the_queue_s_own_words_are_those_of_the_condition_that_holds_it_back() -> None:
    def workload(*conditions: tuple[str, str, str]) -> dict[str, object]:
        told = [{"type": type_, "status": status, "message": message} for type_, status, message in conditions]
        return {"status": {"conditions": told}}

    assert reason_of(workload(("QuotaReserved", "False", WORDS))) == WORDS
    assert reason_of(workload(("QuotaReserved", "False", WORDS), ("Evicted", "True", "preempted"))) == "preempted"
    assert reason_of(workload(("QuotaReserved", "True", "quota"), ("Admitted", "False", "checks"))) == "checks"
    assert reason_of(workload(("QuotaReserved", "True", "quota"), ("Admitted", "True", "admitted"))) == ""
    assert reason_of({}) == ""


def test_a_workload_that_has_its_quota_says_which_checks_it_waits_for() -> None:
    """Before it was admitted once, Kueue gives it no condition that tells so."""

    def workload(*states: tuple[str, str, str], quota: bool = True) -> dict[str, object]:
        checks = [{"name": name, "state": state, "message": message} for name, state, message in states]
        conditions = [{"type": "QuotaReserved", "status": "True", "message": "quota"}] if quota else []
        return {"status": {"conditions": conditions, "admissionChecks": checks}}

    ready, budget = ("site", "Ready", "fits"), ("budget", "Pending", "asks the owner")
    assert reason_of(workload(ready, budget, ("nodes", "Pending", ""))) == "budget: asks the owner; nodes: Pending"
    assert reason_of(workload(ready)) == ""
    assert reason_of(workload(budget, quota=False)) == ""
