"""A job that has failed and is asked to try again, by the annotation `sftjob.dev/retry`."""

from dataclasses import replace

import pytest
from jobs import NOW, a_job, an_outcome, at, in_attempt, observing, seen, summary

from sft_operator.lifecycle.decide import CreateAttempt, DeleteAttempt, decide
from sft_operator.lifecycle.observation import NodeState
from sftjob.failure import Reason
from sftjob.status import AttemptRecord, Phase, SFTJobStatus


def a_failure() -> SFTJobStatus:
    """After attempt 3, which had used up everything."""
    used = {"failures": 3, "disruptions": 7, "without_progress": 2, "saved_step": 40, "running_seconds": 900}
    status = in_attempt(3, **used, shortages=2, avoided_nodes=["node-1"])
    ended = seen(3, an_outcome(Reason.RANK_KILLED, attempt=3, saved_step=40))
    failed = decide(a_job(status=status), observing(ended), now=NOW).status
    assert failed.phase is Phase.FAILED
    return failed


def test_a_new_value_starts_the_next_attempt_with_fresh_budgets_and_keeps_the_history() -> None:
    before = a_failure()
    decision = decide(a_job(status=before, retry="1"), observing(), now=at(60))
    assert summary(decision) == (Phase.STARTING, 4, CreateAttempt(4), None)
    status, attempts = decision.status, decision.status.attempts
    assert status.retry_handled == "1"
    assert (attempts.failures, attempts.disruptions, attempts.without_progress, attempts.running_seconds) == (
        0,
        0,
        0,
        0,
    )
    assert (attempts.saved_step, attempts.avoided_nodes, attempts.shortages) == (40, [], 0)
    assert attempts.history == before.attempts.history
    conditions = {c.type: (c.status, c.reason, c.message, c.last_transition_time) for c in status.conditions}
    assert conditions["Failed"] == ("False", "Starting", "", at(60))
    assert conditions["Stalled"] == ("False", "Starting", "", at(60))
    assert conditions["Reconciling"] == ("True", "Starting", "attempt 4", at(60))


def test_a_retry_takes_the_operator_s_present_image() -> None:
    """It may be what mends the failure."""
    before = a_failure()
    before = before.model_copy(update={"attempts": before.attempts.model_copy(update={"image": "trainer:1"})})
    observed = replace(observing(), default_image="trainer:2")
    attempts = decide(a_job(status=before, retry="1"), observed, now=NOW).status.attempts
    assert (attempts.current, attempts.saved_step, attempts.image) == (4, 40, "trainer:2")


def test_a_value_is_acted_on_once() -> None:
    status = a_failure().model_copy(update={"retry_handled": "1"})
    assert decide(a_job(status=status, retry="1"), observing(), now=NOW).action is None
    assert decide(a_job(status=status, retry="2"), observing(), now=NOW).action == CreateAttempt(4)
    assert decide(a_job(status=status), observing(), now=NOW).action is None


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
def test_a_value_that_comes_before_the_failure_asks_for_nothing(phase: Phase) -> None:
    job = a_job(status=in_attempt(1, phase), retry="early", retries=0)
    running = decide(job, observing(seen(1, NodeState.RUNNING)), now=NOW).status
    assert running.retry_handled == "early"
    died = observing(seen(1, an_outcome(Reason.RANK_KILLED)))
    failed = decide(a_job(status=running, retry="early", retries=0), died, now=NOW).status
    assert failed.phase is Phase.FAILED
    assert decide(a_job(status=failed, retry="early", retries=0), observing(), now=NOW).action is None


def test_what_is_left_of_the_failure_ends_before_the_retry_begins() -> None:
    decision = decide(a_job(status=a_failure(), retry="1"), observing(seen(2, NodeState.RUNNING)), now=NOW)
    assert summary(decision) == (Phase.RESTARTING, 3, DeleteAttempt(2), 1.0)
    assert decision.status.retry_handled == "1"


def test_a_job_that_has_succeeded_is_left_alone() -> None:
    record = AttemptRecord(number=1, reason=Reason.SUCCEEDED, ended_at=NOW)
    status = in_attempt(1, Phase.SUCCEEDED).model_copy(update={"observed_generation": 1})
    status = status.model_copy(update={"attempts": status.attempts.model_copy(update={"history": [record]})})
    decision = decide(a_job(status=status, retry="1"), observing(), now=NOW)
    assert (decision.status, decision.action) == (status, None)


def test_a_value_of_any_length_takes_little_room_in_the_status() -> None:
    decision = decide(a_job(status=a_failure(), retry="x" * 100_000), observing(), now=NOW)
    handled = decision.status.retry_handled
    assert handled is not None
    assert len(handled) == 64
    failed = a_failure().model_copy(update={"retry_handled": handled})
    assert decide(a_job(status=failed, retry="x" * 100_000), observing(), now=NOW).action is None
    assert decide(a_job(status=failed, retry="x" * 100_000 + "y"), observing(), now=NOW).action == CreateAttempt(4)
