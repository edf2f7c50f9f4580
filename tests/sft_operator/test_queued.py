"""Jobs of a queue: they wait without a time of their own, and go on elsewhere when they are taken back."""

from jobs import NOW, a_job, a_success, an_outcome, at, in_attempt, observing, seen, summary

from sft_operator.kubernetes.queued import reason_of
from sft_operator.lifecycle.decide import CreateAttempt, Decision, DeleteAttempt, decide
from sft_operator.lifecycle.observation import NodeState
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
    job = a_job(status=in_attempt(1, Phase.STARTING))
    assert summary(decide(job, observing(seen(1, PENDING, is_suspended=True)), now=NOW)) == (
        Phase.STARTING,
        1,
        DeleteAttempt(1),
        1.0,
    )


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
