"""What the API server says of a job's PyTorchJobs and pods, as an Observation. Pure; called by the backend.

An attempt ends by its pods, never by its PyTorchJob's word: the controller counts a pod as failed that is being
deleted and still saves.
"""

from collections.abc import Iterable, Mapping, Set
from datetime import datetime

from sft_operator.kubernetes.api import Object
from sft_operator.kubernetes.cache import attempt_of
from sft_operator.kubernetes.pod_end import outcome_of, terminated
from sft_operator.kubernetes.pytorch_job import CONTAINER, RANK_LABEL, has_finished, is_ours, is_suspended
from sft_operator.lifecycle.observation import AttemptObservation, NodeObservation, NodeState
from sft_operator.lifecycle.preflight import launchers
from sftjob import names
from sftjob.job import ObjectMeta, SFTJob
from sftjob.status import Phase


def attempts(
    job: SFTJob,
    *,
    pytorch_jobs: Iterable[Object],
    pods: Iterable[Object],
    gone_pods: Iterable[Object],
    held_pods: Set[str],
) -> tuple[AttemptObservation, ...]:
    """In the order of numbers. `gone_pods` don't exist any more; they count for attempts of which more is known.

    `held_pods`: the uids of those that are told to end and have nobody left to end them.
    """
    current, owned = job.status.attempts.current, own_pytorch_jobs(job.metadata, pytorch_jobs)
    here, gone = own_pods(job.metadata, pods, owned), own_pods(job.metadata, gone_pods, owned)
    numbers = owned.keys() | {attempt_of(pod) for pod in here}
    # Of the newest attempt the last words count until its end is recorded, though nothing of it is left.
    if any(attempt_of(pod) == current for pod in gone) and not job.status.attempts.current_has_ended:
        numbers |= {current}
    return tuple(
        _attempt(
            number,
            launchers(job, number),
            owned.get(number),
            [pod for pod in here if attempt_of(pod) == number],
            [pod for pod in gone if attempt_of(pod) == number],
            held_pods,
        )
        for number in sorted(numbers)
    )


def seems_lost(job: SFTJob, attempts: Iterable[AttemptObservation]) -> bool:
    """Whether the current attempt's end would be recorded for want of something that was not seen."""
    recorded = job.status.attempts
    if recorded.current_has_ended:
        return False
    current = next((attempt for attempt in attempts if attempt.number == recorded.current), None)
    if current is None:
        return job.status.phase is not Phase.STARTING
    return not current.is_live and any(node.pod is None for node in current.nodes)


def seems_taken_back(job: SFTJob, attempts: Iterable[AttemptObservation]) -> bool:
    """Whether the current attempt would be ended for being suspended though its pods have run: it may have been let
    go, and its pods were heard of before it."""
    recorded = job.status.attempts
    if recorded.current_has_ended or recorded.ending is not None:
        return False
    current = next((attempt for attempt in attempts if attempt.number == recorded.current), None)
    return current is not None and current.is_suspended and any(n.state is not NodeState.PENDING for n in current.nodes)


def rank_of(pod: Object) -> int:
    """-1 where the label isn't the controller's."""
    label = pod["metadata"]["labels"].get(RANK_LABEL, "")
    return int(label) if label.isdecimal() else -1


def own_pytorch_jobs(job: ObjectMeta, found: Iterable[Object]) -> dict[int, Object]:
    """Those of a job, by attempt."""
    return {
        attempt_of(one): one
        for one in found
        if one["metadata"]["namespace"] == job.namespace and is_ours(one, uid=job.uid)
    }


def own_pods(job: ObjectMeta, found: Iterable[Object], pytorch_jobs: Mapping[int, Object]) -> list[Object]:
    """Those of a job: in its namespace, controlled by the PyTorchJob of the attempt that their label names.

    Of a PyTorchJob that is gone the name has to do.
    """
    return [pod for pod in found if _is_own(job, pod, pytorch_jobs.get(attempt_of(pod)))]


def _is_own(job: ObjectMeta, pod: Object, controller: Object | None) -> bool:
    name = names.attempt_name(job.name, job.uid, attempt_of(pod))
    return pod["metadata"]["namespace"] == job.namespace and any(
        owner.get("controller")
        and (owner["kind"], owner["name"]) == ("PyTorchJob", name)
        and (controller is None or owner["uid"] == controller["metadata"]["uid"])
        for owner in pod["metadata"].get("ownerReferences", [])
    )


def _attempt(
    number: int, nodes: int, pytorch_job: Object | None, here: list[Object], gone: list[Object], held: Set[str]
) -> AttemptObservation:
    goes_by_itself = pytorch_job is None or "deletionTimestamp" in pytorch_job["metadata"]
    is_deleting = goes_by_itself or any("deletionTimestamp" in pod["metadata"] for pod in here)
    may_get_pods = pytorch_job is not None and not is_deleting and not has_finished(pytorch_job)
    return AttemptObservation(
        number=number,
        nodes=tuple(
            _node(
                rank,
                number,
                [pod for pod in here if rank_of(pod) == rank],
                [pod for pod in gone if rank_of(pod) == rank],
                may_get_pods,
                held,
            )
            for rank in range(nodes)
        ),
        is_deleting=is_deleting,
        created_at=datetime.fromisoformat(pytorch_job["metadata"]["creationTimestamp"]) if pytorch_job else None,
        is_suspended=pytorch_job is not None and is_suspended(pytorch_job),
        goes_by_itself=goes_by_itself,
    )


def _node(
    rank: int, attempt: int, here: list[Object], gone: list[Object], may_get_pod: bool, held: Set[str]
) -> NodeObservation:
    """A deleted pod is replaced by the controller; while the new one lives so does the node, and the first one's word
    counts: the new one is only told at the fence that it comes too late."""
    for pod in here:
        state = _live_state(pod, held)
        if state is not None:
            return NodeObservation(rank, state, pod=pod["metadata"]["name"], node=pod["spec"].get("nodeName"))
    ended = sorted([*gone, *here], key=lambda pod: pod["metadata"]["creationTimestamp"])
    if not ended:
        return NodeObservation(rank, NodeState.PENDING if may_get_pod else NodeState.ENDED)
    pod = ended[0]
    # Long past its grace, and nobody is left on its node to end it.
    outcome = outcome_of(pod, attempt=attempt, rank=rank, is_held=pod["metadata"]["uid"] in held)
    return NodeObservation(
        rank,
        NodeState.ENDED,
        outcome,
        pod=pod["metadata"]["name"],
        node=pod["spec"].get("nodeName"),
        lingers=any(_lingers(one) for one in here if one["metadata"]["uid"] not in held),
    )


def _live_state(pod: Object, held: Set[str]) -> NodeState | None:
    """None where it is terminal, or as good as gone. A sidecar that somebody's webhook has put beside the launcher may
    go on for ever after it."""
    if pod["status"].get("phase") in ("Succeeded", "Failed") or terminated(pod) is not None:
        return None
    if pod["metadata"]["uid"] in held:
        return None
    return NodeState.PENDING if pod["status"].get("phase") == "Pending" else NodeState.RUNNING


def _lingers(pod: Object) -> bool:
    others = [one for one in pod["status"].get("containerStatuses", []) if one["name"] != CONTAINER]
    return terminated(pod) is not None and any("running" in one["state"] for one in others)
