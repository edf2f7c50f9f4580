"""What an observation makes of PyTorchJobs and pods, present and gone."""

from typing import Any

import pytest
from cluster_objects import pod, pytorch_job, terminated
from jobs import NOW, a_job, an_outcome, at, some_progress

from sft_operator.kubernetes import packed
from sft_operator.kubernetes.grace import Graces
from sft_operator.kubernetes.observe import attempts, seems_lost
from sft_operator.kubernetes.packed import Packed
from sft_operator.lifecycle.observation import AttemptObservation, AttemptState, NodeObservation, NodeState
from sftjob.failure import Reason
from sftjob.progress import Stage
from sftjob.status import AttemptRecord, AttemptsStatus, Phase, SFTJobStatus

RUNNING, PENDING, ENDED = NodeState.RUNNING, NodeState.PENDING, NodeState.ENDED


def observed(
    *pods: dict[str, Any],
    jobs: tuple[dict[str, Any], ...] = (),
    gone: tuple[dict[str, Any], ...] = (),
    nodes: int = 1,
    held: frozenset[str] = frozenset(),
) -> tuple[AttemptObservation, ...]:
    job = a_job(nodes=nodes, status=SFTJobStatus(attempts=AttemptsStatus(current=2)))
    # As the cache hands them out.
    here, gone_pods = ([Packed.of(one, packed.pod).unpacked() for one in found] for found in (pods, gone))
    owned = [Packed.of(one, packed.pytorch_job).unpacked() for one in jobs]
    return attempts(job, pytorch_jobs=owned, pods=here, gone_pods=gone_pods, held_pods=held)


def node(rank: int, state: NodeState, outcome: Any = None) -> NodeObservation:
    return NodeObservation(rank, state, outcome, pod=f"tiny-4a49acf8-a2-worker-{rank}", node=f"node-{rank}")


def test_a_pytorchjob_without_pods_waits_for_them() -> None:
    assert observed(jobs=(pytorch_job(2),), nodes=2) == (
        AttemptObservation(2, (NodeObservation(0, PENDING), NodeObservation(1, PENDING)), created_at=at(-120)),
    )


def test_a_pytorchjob_that_somebody_suspended_is_seen_as_that() -> None:
    held = pytorch_job(2)
    held["spec"]["runPolicy"]["suspend"] = True
    assert observed(jobs=(held,)) == (
        AttemptObservation(2, (NodeObservation(0, PENDING),), created_at=at(-120), is_suspended=True),
    )


def test_pods_tell_the_state_of_nodes_and_not_their_pytorchjob() -> None:
    found = observed(pod(2, 0), pod(2, 1, "Pending"), jobs=(pytorch_job(2, finished=True),), nodes=2)
    assert found == (AttemptObservation(2, (node(0, RUNNING), node(1, PENDING)), created_at=at(-120)),)


def test_the_last_words_are_those_of_the_termination_message() -> None:
    outcome = an_outcome(Reason.RANK_KILLED, attempt=2, rank=0, signal=9)
    ended = pod(2, 0, "Failed", terminated=terminated(70, message=outcome.to_json()))
    (found,) = observed(ended, jobs=(pytorch_job(2),))
    assert found == AttemptObservation(2, (node(0, ENDED, outcome),), created_at=at(-120))


def test_a_launcher_has_ended_though_a_sidecar_goes_on_and_holds_the_pod() -> None:
    outcome = an_outcome(Reason.SUCCEEDED, attempt=2, final_digest="sha256:00")
    beside = pod(2, 0, terminated=terminated(0, message=outcome.to_json()))
    beside["status"]["containerStatuses"].insert(0, {"name": "istio-proxy", "state": {"running": {}}})
    (found,) = observed(beside, jobs=(pytorch_job(2),))
    assert (found.state, found.nodes[0].outcome, found.lingers) == (AttemptState.ENDED, outcome, True)
    (found,) = observed(beside, jobs=(pytorch_job(2),), held=frozenset({"pod-2-0"}))
    assert not found.lingers, "nobody is left to end it"
    beside["status"]["containerStatuses"][0]["state"] = {"terminated": terminated(0)}
    (found,) = observed(beside, jobs=(pytorch_job(2),))
    assert (found.state, found.lingers) == (AttemptState.ENDED, False)


def test_a_container_that_never_began_has_no_time_of_a_start() -> None:
    end = terminated(128, reason="StartError") | {"startedAt": "1970-01-01T00:00:00Z"}
    (found,) = observed(pod(2, 0, "Failed", terminated=end), jobs=(pytorch_job(2),))
    assert found.nodes[0].outcome is not None
    assert found.nodes[0].outcome.started_at.year == 2026


def test_a_pod_that_is_being_deleted_still_saves_and_its_attempt_ends() -> None:
    (found,) = observed(pod(2, 0, deleted="2026-01-01T12:01:00Z"), pod(2, 1), jobs=(pytorch_job(2),), nodes=2)
    nodes = (node(0, RUNNING), node(1, RUNNING))
    assert found == AttemptObservation(2, nodes, is_deleting=True, created_at=at(-120))


def test_the_last_words_of_a_deleted_pod_count_when_nothing_is_left() -> None:
    outcome = an_outcome(Reason.PREEMPTED, attempt=2, saved=True)
    gone = pod(2, 0, "Failed", terminated=terminated(75, message=outcome.to_json()))
    ended = AttemptObservation(2, (node(0, ENDED, outcome),), is_deleting=True, goes_by_itself=True)
    assert observed(gone=(gone,)) == (ended,)


def test_pods_of_an_attempt_whose_end_is_recorded_are_forgotten_once_they_are_gone() -> None:
    record = AttemptRecord(number=2, reason=Reason.PREEMPTED, ended_at=NOW)
    job = a_job(status=SFTJobStatus(attempts=AttemptsStatus(current=2, history=[record])))
    assert attempts(job, pytorch_jobs=[], pods=[], gone_pods=[pod(2, 0, "Failed")], held_pods=set()) == ()


def test_a_replaced_pod_lives_while_it_lives_and_the_first_ones_word_counts() -> None:
    outcome = an_outcome(Reason.PREEMPTED, attempt=2, saved=True)
    first = pod(2, 0, "Failed", uid="first", terminated=terminated(75, message=outcome.to_json()))
    second = pod(2, 0, uid="second", created="2026-01-01T12:00:00Z")
    assert observed(second, jobs=(pytorch_job(2),), gone=(first,))[0].nodes == (node(0, RUNNING),)
    late = an_outcome(Reason.SUPERSEDED, attempt=2)
    second = pod(
        2, 0, "Failed", uid="second", created="2026-01-01T12:00:00Z", terminated=terminated(76, message=late.to_json())
    )
    assert observed(second, jobs=(pytorch_job(2),), gone=(first,))[0].nodes == (node(0, ENDED, outcome),)


def test_a_pods_grace_is_over_by_the_time_since_it_was_seen_to_be_told_whatever_its_clock_says() -> None:
    graces, runs = Graces(), pod(2, 1)
    told = pod(2, 0, deleted="2020-01-01T00:00:00Z")
    told["metadata"]["deletionGracePeriodSeconds"] = 120
    assert graces.over("uid-1", [runs], now=1000) == set()
    assert graces.over("uid-1", [told, runs], now=2000) == set()
    assert graces.over("uid-2", [], now=2100) == set()
    assert graces.over("uid-1", [told, runs], now=2180) == set()
    assert graces.over("uid-1", [told, runs], now=2181) == {"pod-2-0"}
    graces.keep_only({"uid-2"})
    assert graces.over("uid-1", [told, runs], now=2182) == set()


def test_a_pod_long_past_its_grace_is_gone_with_its_node() -> None:
    held = pod(2, 0, deleted="2026-01-01T11:59:01Z")
    (found,) = observed(held, jobs=(pytorch_job(2, deleting=True),))
    assert found.is_live
    job = a_job(status=SFTJobStatus(attempts=AttemptsStatus(current=2)))
    (found,) = attempts(
        job, pytorch_jobs=[pytorch_job(2, deleting=True)], pods=[held], gone_pods=[], held_pods={"pod-2-0"}
    )
    lost = an_outcome(Reason.NODE_LOST, attempt=2, ended=-59, message="node-0 is lost: it did not end its pod")
    lost = lost.model_copy(update={"exit_code": None})
    nodes = (node(0, ENDED, lost),)
    assert found == AttemptObservation(2, nodes, is_deleting=True, created_at=at(-120), goes_by_itself=True)


@pytest.mark.parametrize(
    "foreign",
    [
        pytorch_job(2, uid="somebody"),
        pod(2, 0, owner="somebody-a2"),
        pod(2, 0, namespace="elsewhere"),
    ],
)
def test_what_only_looks_like_ours_is_not_seen(foreign: dict[str, Any]) -> None:
    is_pod = "containers" in foreign["spec"]
    assert observed(*([foreign] if is_pod else []), jobs=() if is_pod else (foreign,)) == ()


@pytest.mark.parametrize(
    ("status", "end", "reason", "said"),
    [
        (
            {},
            terminated(137, reason="OOMKilled", message="last line of the log"),
            Reason.OUT_OF_MEMORY,
            "spec.compute.resources.limits.memory: all that its node has of memory was not enough; "
            "raise it, or use shorter packs",
        ),
        (
            {},
            terminated(137),
            Reason.LAUNCHER_LOST,
            "the launcher of node 0 ended with exit code 137 and without a word",
        ),
        (
            {},
            terminated(128, reason="StartError", message='exec: "python": executable file not found in $PATH'),
            Reason.LAUNCHER_FAILED,
            "the container of node 0 can't be started from the image trainer:1: "
            'exec: "python": executable file not found in $PATH',
        ),
        (
            {},
            terminated(1, message="Traceback:\nModuleNotFoundError: No module named 'sft_trainer'\n"),
            Reason.LAUNCHER_FAILED,
            "the launcher of node 0 ended with exit code 1 and without a word; look whether the image trainer:1 is a "
            "trainer's of this version: ModuleNotFoundError: No module named 'sft_trainer'",
        ),
        (
            {"reason": "Evicted", "message": "The node was low on resource: memory."},
            None,
            Reason.PREEMPTED,
            "Evicted: The node was low on resource: memory.",
        ),
        (
            {"reason": "OutOfcpu", "message": "Pod was rejected: node has no room"},
            None,
            Reason.PREEMPTED,
            "OutOfcpu: Pod was rejected: node has no room",
        ),
        (
            {
                "reason": "UnexpectedAdmissionError",
                "message": "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices "
                "nvidia.com/gpu, which is unexpected",
            },
            None,
            Reason.GPU_FAULT,
            "UnexpectedAdmissionError: Allocate failed due to no healthy devices present; cannot allocate unhealthy "
            "devices nvidia.com/gpu, which is unexpected",
        ),
        (
            {
                "conditions": [
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "PreemptionByScheduler",
                        "message": "preempted to make room",
                    }
                ]
            },
            terminated(143),
            Reason.PREEMPTED,
            "PreemptionByScheduler: preempted to make room",
        ),
        (
            {
                "conditions": [
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "DeletionByPodGC",
                        "message": "PodGC: node no longer exists",
                    }
                ]
            },
            None,
            Reason.NODE_LOST,
            "node-0 is lost: it did not end its pod; DeletionByPodGC: PodGC: node no longer exists",
        ),
    ],
)
def test_an_end_without_last_words_is_told_by_the_cluster(
    status: dict[str, Any], end: dict[str, Any] | None, reason: Reason, said: str
) -> None:
    (found,) = observed(pod(2, 0, "Failed", terminated=end, **status), jobs=(pytorch_job(2),))
    outcome = found.nodes[0].outcome
    assert outcome is not None
    assert (outcome.reason, outcome.message) == (reason, said)
    assert outcome.log_tail == (end or {}).get("message", "")
    assert outcome.exit_code == (end or {}).get("exitCode")


def test_a_pod_of_a_pytorchjob_that_is_not_this_one_is_not_seen() -> None:
    (found,) = observed(pod(2, 0, owner_uid="somebody"), jobs=(pytorch_job(2),))
    assert found.nodes == (NodeObservation(0, PENDING),)


def test_a_success_is_not_believed_of_a_container_that_was_killed() -> None:
    forged = an_outcome(Reason.SUCCEEDED, attempt=2, final_digest="sha256:00")
    (found,) = observed(
        pod(2, 0, "Failed", terminated=terminated(137, message=forged.to_json())), jobs=(pytorch_job(2),)
    )
    outcome = found.nodes[0].outcome
    assert outcome is not None
    assert outcome.reason is Reason.LAUNCHER_LOST


def test_a_rank_that_the_kernel_ended_for_its_memory_is_told_as_such_though_its_launcher_saw_a_signal_only() -> None:
    progress = some_progress(attempt=2, step=7)
    told = an_outcome(Reason.RANK_KILLED, attempt=2, rank=0, signal=9, last_step=7, progress=progress)
    for reason, known in (("OOMKilled", Reason.OUT_OF_MEMORY), ("Error", Reason.RANK_KILLED)):
        ended = pod(2, 0, "Failed", terminated=terminated(70, reason=reason, message=told.to_json()))
        (found,) = observed(ended, jobs=(pytorch_job(2),))
        outcome = found.nodes[0].outcome
        assert outcome is not None
        assert (outcome.reason, outcome.rank, outcome.last_step) == (known, 0, 7)


@pytest.mark.parametrize(
    ("reason", "rank", "stage", "remedy"),
    [
        (Reason.RANK_KILLED, 0, Stage.LOADING_MODEL, "raise it, or use more nodes or spec.training.lora"),
        (Reason.RANK_KILLED, 0, Stage.LOADING_CHECKPOINT, "raise it, or use more nodes or spec.training.lora"),
        (Reason.LAUNCHER_FAILED, None, Stage.PREPARING_DATA, "raise it: it ran out in stage PreparingData"),
        (Reason.TORCHRUN_LOST, None, Stage.STARTING, "raise it: it ran out in stage Starting"),
    ],
)
def test_what_the_kernel_ended_before_training_is_told_apart_since_smaller_parts_of_packs_would_not_help(
    reason: Reason, rank: int | None, stage: Stage, remedy: str
) -> None:
    progress = some_progress(attempt=2).model_copy(update={"stage": stage})
    told = an_outcome(reason, attempt=2, rank=rank, signal=9, progress=progress)
    ended = pod(2, 0, "Failed", terminated=terminated(70, reason="OOMKilled", message=told.to_json()))
    (found,) = observed(ended, jobs=(pytorch_job(2),))
    outcome = found.nodes[0].outcome
    assert outcome is not None
    assert (outcome.reason, outcome.message) == (
        Reason.LOAD_OUT_OF_MEMORY,
        f"spec.compute.resources.limits.memory: all that its node has of memory was not enough; {remedy}",
    )


@pytest.mark.parametrize(("reason", "rank"), [(Reason.RANK_KILLED, 1), (Reason.TORCHRUN_LOST, None)])
def test_what_the_kernel_ended_on_a_node_that_hears_nothing_of_its_ranks_may_have_been_a_step(
    reason: Reason, rank: int | None
) -> None:
    progress = some_progress(attempt=2).model_copy(update={"stage": Stage.STARTING})
    told = an_outcome(reason, attempt=2, node_rank=1, rank=rank, signal=9, progress=progress)
    ended = pod(2, 1, "Failed", terminated=terminated(70, reason="OOMKilled", message=told.to_json()))
    (found,) = observed(ended, nodes=2, jobs=(pytorch_job(2),))
    outcome = found.nodes[1].outcome
    assert outcome is not None
    assert outcome.reason is Reason.OUT_OF_MEMORY


def test_the_words_of_another_attempt_are_not_believed() -> None:
    forged = an_outcome(Reason.SUCCEEDED, attempt=1, final_digest="sha256:00")
    (found,) = observed(
        pod(2, 0, "Failed", terminated=terminated(70, message=forged.to_json())), jobs=(pytorch_job(2),)
    )
    outcome = found.nodes[0].outcome
    assert outcome is not None
    assert outcome.reason is Reason.LAUNCHER_LOST


@pytest.mark.parametrize(
    ("phase", "found", "expected"),
    [
        (Phase.RUNNING, (), True),
        (Phase.STARTING, (), False),
        (Phase.RUNNING, observed(pod(2, 0), nodes=1), False),
        (Phase.RUNNING, observed(pod(2, 0, "Failed"), nodes=1), False),
        (Phase.RUNNING, observed(pod(2, 0, "Failed"), nodes=2), True),
        (Phase.RUNNING, observed(gone=(pod(2, 0, "Failed"),), nodes=1), False),
        (Phase.RUNNING, observed(jobs=(pytorch_job(2, deleting=True),), nodes=1), True),
    ],
)
def test_an_attempt_of_which_something_was_never_seen_seems_lost(phase: Phase, found: Any, expected: bool) -> None:
    status = SFTJobStatus(phase=phase, attempts=AttemptsStatus(current=2))
    assert seems_lost(a_job(status=status), found) is expected
    recorded = [AttemptRecord(number=2, reason=Reason.PREEMPTED, ended_at=NOW)]
    ended = SFTJobStatus(phase=phase, attempts=AttemptsStatus(current=2, history=recorded))
    assert not seems_lost(a_job(status=ended), found)
