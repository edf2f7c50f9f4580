"""How a pod of an attempt ended: its status in, the launcher's last words out, or what the cluster says in their place.

Pure. Called by `observe`.
"""

import signal
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from sft_operator.kubernetes.api import Object
from sft_operator.kubernetes.pytorch_job import CONTAINER
from sftjob.failure import ExitCode, Reason
from sftjob.outcome import Outcome
from sftjob.progress import Stage

_EVICTIONS = ("Evicted", "Preempting", "NodeShutdown", "Terminated")
"""Reasons in a pod's status where the kubelet ended it for its node's sake."""

_UNHEALTHY = "unhealthy devices"
"""In the kubelet's words where a node's device plugin has no device that works."""

_NEVER_BEGUN = ("StartError", "ContainerCannotRun", "ContainerStartError")
"""Reasons of a container's end where its runtime could not start it; it has no true time of a start then."""

_LONGEST_LINE = 200
"""Characters of what a container said last."""

_OF_SIGNALS = 128
"""Exit codes from here on are of processes that a signal has ended."""

_LOADING = (Stage.LOADING_MODEL, Stage.LOADING_CHECKPOINT)
"""What more ranks, or fewer trained weights, make smaller."""

_BEFORE_LOADING = (Stage.DOWNLOADING_MODEL, Stage.DOWNLOADING_DATA, Stage.PREPARING_DATA, Stage.STARTING)


def outcome_of(pod: Object, *, attempt: int, rank: int, is_held: bool = False) -> Outcome | None:
    """None where the cluster knows no end of its container.

    `is_held`: long past its grace, and nobody has ended it.
    """
    end = terminated(pod)
    eviction = _eviction(pod)
    if end is None:
        if is_held or _lost_its_node(pod):
            node = pod["spec"].get("nodeName", "its node")
            sentence = f"{node} is lost: it did not end its pod" + (f"; {eviction}" if eviction else "")
            return _told_by_cluster(Reason.NODE_LOST, sentence, attempt, rank, pod, {})
        if eviction is None:
            return None
        reason = Reason.GPU_FAULT if _UNHEALTHY in eviction else Reason.PREEMPTED
        return _told_by_cluster(reason, eviction, attempt, rank, pod, {})
    message, code = end.get("message", ""), end["exitCode"]
    try:
        told = Outcome.from_json(message)
    except ValidationError:
        pass
    else:
        if (told.attempt, told.node_rank, told.exit_code) == (attempt, rank, code):
            # Where the kernel ends one process of a container, its launcher saw no more than the signal.
            is_shortage = told.signal == signal.SIGKILL and end.get("reason") == "OOMKilled"
            return _with_shortage(told, pod) if is_shortage else told
    if end.get("reason") == "OOMKilled":
        sentence = _shortage(pod)
        return _told_by_cluster(Reason.OUT_OF_MEMORY, sentence, attempt, rank, pod, end)
    if eviction:
        return _told_by_cluster(Reason.PREEMPTED, eviction, attempt, rank, pod, end)
    if end.get("reason") in _NEVER_BEGUN:
        sentence = f"the container of node {rank} can't be started from the image {_container(pod)['image']}: {message}"
        return _told_by_cluster(Reason.LAUNCHER_FAILED, sentence, attempt, rank, pod, end)
    sentence = f"the launcher of node {rank} ended with exit code {code} and without a word"
    if 0 < code < _OF_SIGNALS and code not in [*ExitCode]:
        # It never came to its own end, which has a code of ours.
        said = f": {line}" if (line := _last_line(message)) else ""
        sentence += f"; look whether the image {_container(pod)['image']} is a trainer's of this version{said}"
        return _told_by_cluster(Reason.LAUNCHER_FAILED, sentence, attempt, rank, pod, end)
    return _told_by_cluster(Reason.LAUNCHER_LOST, sentence, attempt, rank, pod, end)


def terminated(pod: Object) -> Object | None:
    """How its launcher's container ended; None where it has not."""
    for container in pod["status"].get("containerStatuses", []):
        if container["name"] == CONTAINER:
            state: Object | None = container["state"].get("terminated")
            return state
    return None


def _container(pod: Object) -> Object:
    """The launcher's, in the pod's spec."""
    found: Object = next(one for one in pod["spec"]["containers"] if one["name"] == CONTAINER)
    return found


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
    is_refused = pod["status"].get("phase") == "Failed" and terminated(pod) is None
    if reason and (is_refused or reason in _EVICTIONS):
        return f"{reason}: {pod['status'].get('message', '')}".strip(": ")
    return None


def _told_by_cluster(
    reason: Reason, message: str, attempt: int, rank: int, pod: Object, end: dict[str, Any]
) -> Outcome:
    began = None if end.get("reason") in _NEVER_BEGUN else end.get("startedAt")
    started = began or pod["status"].get("startTime") or pod["metadata"]["creationTimestamp"]
    ended = end.get("finishedAt") or pod["metadata"].get("deletionTimestamp") or started
    return Outcome(
        attempt=attempt,
        node_rank=rank,
        reason=reason,
        exit_code=end.get("exitCode"),
        message=message,
        log_tail=end.get("message", "")[-600:],
        started_at=datetime.fromisoformat(started),
        ended_at=datetime.fromisoformat(ended),
    )


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:_LONGEST_LINE]


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
    limit = _container(pod).get("resources", {}).get("limits", {}).get("memory")
    return str(limit) if limit else None
