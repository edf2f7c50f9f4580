"""How a pod of an attempt ended: its status in, the launcher's last words out, or what the cluster says in their place.

Pure. Called by `observe`.
"""

import signal
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from sft_operator.kubernetes.api import Object
from sft_operator.kubernetes.pytorch_job import CONTAINER
from sftjob.failure import Reason
from sftjob.outcome import Outcome
from sftjob.progress import Stage

_EVICTIONS = ("Evicted", "Preempting", "NodeShutdown", "Terminated")
"""Reasons in a pod's status where the kubelet ended it for its node's sake."""

_UNHEALTHY = "unhealthy devices"
"""In the kubelet's words where a node's device plugin has no device that works."""

_LOADING = (Stage.LOADING_MODEL, Stage.LOADING_CHECKPOINT)
"""What more ranks, or fewer trained weights, make smaller."""

_BEFORE_LOADING = (Stage.DOWNLOADING_MODEL, Stage.DOWNLOADING_DATA, Stage.PREPARING_DATA, Stage.STARTING)


def outcome_of(pod: Object, *, attempt: int, rank: int, is_held: bool = False) -> Outcome | None:
    """None where the cluster knows no end of its container.

    `is_held`: long past its grace, and nobody has ended it.
    """
    terminated = _terminated(pod)
    eviction = _eviction(pod)
    if terminated is None:
        if is_held or _lost_its_node(pod):
            node = pod["spec"].get("nodeName", "its node")
            sentence = f"{node} is lost: it did not end its pod" + (f"; {eviction}" if eviction else "")
            return _told_by_cluster(Reason.NODE_LOST, sentence, attempt, rank, pod, {})
        if eviction is None:
            return None
        reason = Reason.GPU_FAULT if _UNHEALTHY in eviction else Reason.PREEMPTED
        return _told_by_cluster(reason, eviction, attempt, rank, pod, {})
    message, code = terminated.get("message", ""), terminated["exitCode"]
    try:
        told = Outcome.from_json(message)
    except ValidationError:
        pass
    else:
        if (told.attempt, told.node_rank, told.exit_code) == (attempt, rank, code):
            # Where the kernel ends one process of a container, its launcher saw no more than the signal.
            is_shortage = told.signal == signal.SIGKILL and terminated.get("reason") == "OOMKilled"
            return _with_shortage(told, pod) if is_shortage else told
    if terminated.get("reason") == "OOMKilled":
        sentence = _shortage(pod)
        return _told_by_cluster(Reason.OUT_OF_MEMORY, sentence, attempt, rank, pod, terminated)
    if eviction:
        return _told_by_cluster(Reason.PREEMPTED, eviction, attempt, rank, pod, terminated)
    sentence = f"the launcher of node {rank} ended with exit code {code} and without a word"
    return _told_by_cluster(Reason.LAUNCHER_LOST, sentence, attempt, rank, pod, terminated)


def _terminated(pod: Object) -> Object | None:
    for container in pod["status"].get("containerStatuses", []):
        if container["name"] == CONTAINER:
            state: Object | None = container["state"].get("terminated")
            return state
    return None


def _lost_its_node(pod: Object) -> bool:
    """The pod garbage collector took it away because there is no such node any more."""
    return any(
        condition["type"] == "DisruptionTarget" and condition.get("reason") == "DeletionByPodGC"
        for condition in pod["status"].get("conditions", [])
    )


def _eviction(pod: Object) -> str | None:
    """Why the cluster took the pod away or its node would not have it, in their words."""
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"{condition.get('reason', 'disrupted')}: {condition.get('message', '')}".strip(": ")
    reason = pod["status"].get("reason")
    # A kubelet that refuses a pod (OutOfcpu, NodeAffinity, UnexpectedAdmissionError...) starts no container of it.
    is_refused = pod["status"].get("phase") == "Failed" and _terminated(pod) is None
    if reason and (is_refused or reason in _EVICTIONS):
        return f"{reason}: {pod['status'].get('message', '')}".strip(": ")
    return None


def _told_by_cluster(
    reason: Reason, message: str, attempt: int, rank: int, pod: Object, terminated: dict[str, Any]
) -> Outcome:
    started = terminated.get("startedAt") or pod["status"].get("startTime") or pod["metadata"]["creationTimestamp"]
    ended = terminated.get("finishedAt") or pod["metadata"].get("deletionTimestamp") or started
    return Outcome(
        attempt=attempt,
        node_rank=rank,
        reason=reason,
        exit_code=terminated.get("exitCode"),
        message=message,
        log_tail=terminated.get("message", "")[-600:],
        started_at=datetime.fromisoformat(started),
        ended_at=datetime.fromisoformat(ended),
    )


def _with_shortage(told: Outcome, pod: Object) -> Outcome:
    """Before any pack goes through the model, smaller parts of packs would not help."""
    stage = told.progress.stage if told.progress else None
    reason, remedy = Reason.OUT_OF_MEMORY, ", or use shorter packs"
    if stage in _LOADING:
        reason, remedy = Reason.LOAD_OUT_OF_MEMORY, ", or use more nodes or spec.training.lora"
    elif stage in _BEFORE_LOADING and told.rank is None and _knows_stage(told):
        reason, remedy = Reason.LOAD_OUT_OF_MEMORY, f": it ran out in stage {stage}"
    return told.model_copy(update={"reason": reason, "message": _shortage(pod, remedy)})


def _knows_stage(told: Outcome) -> bool:
    """How far ranks are is heard on node 0 alone; on the others `Starting` is the last word once they run."""
    return told.node_rank == 0 or told.reason is Reason.LAUNCHER_FAILED


def _shortage(pod: Object, remedy: str = ", or use shorter packs") -> str:
    limit = _memory_limit(pod) or "all that its node has"
    return f"spec.compute.resources.limits.memory: {limit} of memory was not enough; raise it{remedy}"


def _memory_limit(pod: Object) -> str | None:
    limit = pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get("memory")
    return str(limit) if limit else None
