"""The attempt that prepares before accelerators are asked for: when there is one, what it costs, what follows it."""

from typing import Any

import pytest
from jobs import NOW, a_job, a_success, after, an_outcome, at, failed, in_attempt, observing, seen, summary

from sft_operator.lifecycle.decide import CreateAttempt, DeleteAttempt, decide
from sft_operator.lifecycle.observation import NodeState
from sft_operator.lifecycle.plan import launch_plan
from sft_operator.lifecycle.preflight import launchers
from sftjob.failure import NEVER_RETRIED, Reason
from sftjob.job import SFTJob
from sftjob.status import AttemptKind, AttemptRecord, Phase, SFTJobStatus, Usage

RUNNING, PENDING, MISSING = NodeState.RUNNING, NodeState.PENDING, NodeState.MISSING


def in_preflight(number: int = 1, phase: Phase = Phase.RUNNING, **attempts: Any) -> SFTJobStatus:
    return in_attempt(number, phase, kind=AttemptKind.PREFLIGHT, **attempts)


def first_kind(job: SFTJob) -> AttemptKind:
    return decide(job, observing(), now=NOW).status.attempts.kind


def after_end(status: SFTJobStatus, reason: Reason, *, now: float = 0, **told: Any) -> SFTJobStatus:
    """Of a job with two nodes of four GPUs, whose current attempt has ended so."""
    outcome = an_outcome(reason, attempt=status.attempts.current, **told)
    ended = observing(seen(status.attempts.current, outcome))
    return decide(a_job(nodes=2, gpus=4, status=status), ended, now=at(now)).status


@pytest.mark.parametrize(
    ("gpus", "policy", "kind"),
    [
        (4, {}, AttemptKind.PREFLIGHT),
        (4, {"preflight": "always"}, AttemptKind.PREFLIGHT),
        (4, {"preflight": "never"}, AttemptKind.TRAINING),
        (0, {}, AttemptKind.TRAINING),
        (0, {"preflight": "always"}, AttemptKind.PREFLIGHT),
    ],
)
def test_a_job_begins_with_a_pre_flight_where_it_asks_for_accelerators_or_for_one(
    gpus: int, policy: dict[str, Any], kind: AttemptKind
) -> None:
    assert first_kind(a_job(gpus=gpus, **policy)) is kind


@pytest.mark.parametrize(
    ("resources", "kind"),
    [
        ({"limits": {"nvidia.com/mig-1g.10gb": 1}}, AttemptKind.PREFLIGHT),
        ({"limits": {"google.com/tpu": "8"}}, AttemptKind.PREFLIGHT),
        ({"limits": {"nvidia.com/gpu": "0"}}, AttemptKind.TRAINING),
        ({"requests": {"cpu": 8, "memory": "64Gi"}, "limits": {"ephemeral-storage": "1Ti"}}, AttemptKind.TRAINING),
    ],
)
def test_an_accelerator_is_whatever_is_neither_processor_nor_memory_nor_disk(
    resources: dict[str, Any], kind: AttemptKind
) -> None:
    job = a_job()
    document = job.spec.to_json_dict() | {"compute": {"resources": resources}}
    assert first_kind(job.model_copy(update={"spec": type(job.spec).model_validate(document)})) is kind


def test_a_pre_flight_has_one_launcher_which_is_told_to_prepare_only() -> None:
    decision = decide(a_job(nodes=2, gpus=4), observing(), now=NOW)
    assert summary(decision) == (Phase.STARTING, 1, CreateAttempt(1), None)
    job = a_job(nodes=2, gpus=4, status=decision.status)
    plan = launch_plan(job, 1, path_of=str)
    assert (plan.prepare_only, plan.nodes, plan.spec.compute.nodes) == (True, 1, 2)
    assert launchers(job, 1) == 1
    # It runs as a whole, and nothing of it is missing.
    assert decide(job, observing(seen(1, RUNNING)), now=NOW).action is None
    told = [c.message for c in decision.status.conditions if c.type == "Reconciling"]
    assert told == ["attempt 1 (pre-flight on one worker, without accelerators)"]


def test_once_one_has_prepared_the_next_attempt_trains_at_once_and_nothing_was_used_up() -> None:
    status = in_preflight(running_since=at(-50))
    prepared = observing(seen(1, an_outcome(Reason.PREPARED)))
    job = a_job(nodes=2, gpus=4, retries=0, disruptionRetries=0, status=status)
    decision = decide(job, prepared, now=NOW)
    assert summary(decision) == (Phase.STARTING, 2, CreateAttempt(2), None)
    attempts = decision.status.attempts
    assert (attempts.kind, attempts.prepared) == (AttemptKind.TRAINING, 1)
    assert (attempts.failures, attempts.disruptions, attempts.without_progress) == (0, 0, 0)
    assert attempts.recovery is None
    assert attempts.history == [
        AttemptRecord(
            number=1,
            kind=AttemptKind.PREFLIGHT,
            reason=Reason.PREPARED,
            exit_code=0,
            node_rank=0,
            started_at=at(-60),
            ended_at=NOW,
        )
    ]
    job = a_job(nodes=2, gpus=4, status=decision.status)
    assert (launchers(job, 1), launchers(job, 2)) == (1, 2)
    assert not launch_plan(job, 2, path_of=str).prepare_only
    trained = observing(seen(2, a_success(attempt=2), an_outcome(Reason.SUCCEEDED, attempt=2, node_rank=1)))
    assert decide(job, trained, now=NOW).status.phase is Phase.SUCCEEDED


def test_a_pre_flight_that_has_prepared_counts_neither_for_nor_against_progress() -> None:
    assert after_end(in_preflight(without_progress=2), Reason.PREPARED).attempts.without_progress == 2


@pytest.mark.parametrize("reason", sorted(NEVER_RETRIED))
def test_what_a_pre_flight_finds_wrong_ends_the_job(reason: Reason) -> None:
    found = observing(seen(1, an_outcome(reason, message="chats.jsonl:3: no messages")))
    decision = decide(a_job(nodes=2, gpus=4, status=in_preflight()), found, now=NOW)
    assert summary(decision) == (Phase.FAILED, 1, None, None)
    assert failed(decision) == (reason.value, "chats.jsonl:3: no messages")


@pytest.mark.parametrize(
    ("reason", "spent"), [(Reason.HUB_UNREACHABLE, (1, 0)), (Reason.PREEMPTED, (0, 1)), (Reason.NODE_LOST, (0, 1))]
)
def test_a_pre_flight_that_did_not_get_so_far_costs_what_any_attempt_costs_and_is_done_again(
    reason: Reason, spent: tuple[int, int]
) -> None:
    status = after_end(in_preflight(), reason)
    assert (status.phase, status.attempts.next_at) == (Phase.RESTARTING, at(1))
    assert (status.attempts.failures, status.attempts.disruptions) == spent
    decision = decide(a_job(nodes=2, gpus=4, status=status), observing(), now=at(1))
    assert summary(decision) == (Phase.STARTING, 2, CreateAttempt(2), None)
    assert decision.status.attempts.kind is AttemptKind.PREFLIGHT


def test_a_pre_flight_uses_no_gpu_time_and_its_time_counts_for_the_deadline() -> None:
    before = {"usage": Usage(gpu_seconds=100, lost_gpu_seconds=10)}
    status = after_end(in_preflight(running_since=at(-50)).model_copy(update=before), Reason.PREPARED)
    assert status.usage == Usage(gpu_seconds=100, lost_gpu_seconds=10)
    assert status.attempts.running_seconds == 50


def test_memory_that_was_too_small_for_a_pre_flight_says_nothing_of_training() -> None:
    status = after_end(in_preflight(), Reason.OUT_OF_MEMORY)
    assert status.attempts.shortages == 1, "the next one reads with fewer processes"
    status = decide(a_job(nodes=2, gpus=4, status=status), observing(), now=at(1)).status
    assert after_end(status, Reason.PREPARED, now=9).attempts.shortages == 0


def test_no_pre_flight_follows_where_a_checkpoint_is_saved() -> None:
    """As by an older version, which had none."""
    saved = a_job(gpus=4, status=after(1, saved_step=10))
    assert decide(saved, observing(), now=NOW).status.attempts.kind is AttemptKind.TRAINING


def test_a_retry_by_hand_looks_again() -> None:
    """What was mended may be the data."""
    status = after(2, Phase.FAILED, prepared=1)
    decision = decide(a_job(gpus=4, status=status, retry="1"), observing(), now=NOW)
    assert (decision.action, decision.status.attempts.kind) == (CreateAttempt(3), AttemptKind.PREFLIGHT)


def test_an_announced_pre_flight_stays_one_though_the_policy_has_changed_meanwhile() -> None:
    status = in_preflight(phase=Phase.STARTING)
    job = a_job(nodes=2, gpus=4, status=status, preflight="never")
    decision = decide(job, observing(), now=NOW)
    assert decision.action == CreateAttempt(1)
    assert launch_plan(job.model_copy(update={"status": decision.status}), 1, path_of=str).prepare_only


def test_a_job_that_is_suspended_in_its_pre_flight_goes_on_with_what_is_still_to_be_done() -> None:
    stopping = decide(a_job(gpus=4, suspend=True, status=in_preflight()), observing(seen(1, RUNNING)), now=NOW)
    assert summary(stopping) == (Phase.SUSPENDING, 1, DeleteAttempt(1), 1.0)
    for reason, kind in ((Reason.PREEMPTED, AttemptKind.PREFLIGHT), (Reason.PREPARED, AttemptKind.TRAINING)):
        ended = observing(seen(1, an_outcome(reason), is_deleting=True))
        suspended = decide(a_job(gpus=4, suspend=True, status=stopping.status), ended, now=at(3)).status
        assert suspended.phase is Phase.SUSPENDED
        assert (suspended.attempts.failures, suspended.attempts.disruptions) == (0, 0)
        resumed = decide(a_job(gpus=4, status=suspended), observing(), now=at(9))
        assert (resumed.action, resumed.status.attempts.kind) == (CreateAttempt(2), kind)


def test_an_operator_that_dies_after_the_record_of_a_pre_flight_asks_for_the_same_attempt_again() -> None:
    announced = decide(
        a_job(nodes=2, gpus=4, status=in_preflight()), observing(seen(1, an_outcome(Reason.PREPARED))), now=NOW
    ).status
    job = a_job(nodes=2, gpus=4, status=announced)
    again = decide(job, observing(seen(1, an_outcome(Reason.PREPARED))), now=at(5))
    assert (again.status.attempts.current, again.status.attempts.kind) == (2, AttemptKind.TRAINING)
    assert again.action == CreateAttempt(2)
    # What is left of the pre-flight is in nobody's way, and goes once that is done.
    both = observing(seen(1, an_outcome(Reason.PREPARED)), seen(2, PENDING, PENDING))
    assert decide(job, both, now=at(6)).action == DeleteAttempt(1)


def test_a_pre_flight_of_a_queue_waits_in_it_like_any_attempt() -> None:
    job = a_job(nodes=2, gpus=4, queue="team-a", status=in_preflight(phase=Phase.STARTING))
    held = decide(job, observing(seen(1, PENDING, is_suspended=True)), now=NOW)
    assert (held.status.phase, held.action) == (Phase.QUEUED, None)
