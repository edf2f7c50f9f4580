"""PyTorchJobs, pods and events as the API server writes them, with what the operator reads of them."""

from typing import Any

UID = "uid-1"
NAME = "tiny-4a49acf8"
"""Of the attempts of the job `tiny` with this uid, without their number."""


def pytorch_job(attempt: int, *, uid: str = UID, deleting: bool = False, finished: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "metadata": {
            "name": f"{NAME}-a{attempt}",
            "namespace": "default",
            "uid": f"job-{attempt}",
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T11:58:00Z",
            "labels": labels(attempt),
            "ownerReferences": [{"kind": "SFTJob", "name": "tiny", "uid": uid, "controller": True}],
        },
        "spec": {"runPolicy": {"cleanPodPolicy": "Running"}},
        "status": {},
    }
    if deleting:
        found["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    if finished:
        found["status"]["conditions"] = [{"type": "Failed", "status": "True"}]
    return found


def pod(
    attempt: int,
    rank: int = 0,
    phase: str = "Running",
    *,
    uid: str | None = None,
    created: str = "2026-01-01T11:59:00Z",
    deleted: str | None = None,
    owner: str | None = None,
    owner_uid: str | None = None,
    namespace: str = "default",
    terminated: dict[str, Any] | None = None,
    waiting: dict[str, Any] | None = None,
    conditions: list[dict[str, Any]] | None = None,
    version: int = 1,
    **status: Any,
) -> dict[str, Any]:
    state = {"terminated": terminated} if terminated else {"waiting": waiting} if waiting else {"running": {}}
    found: dict[str, Any] = {
        "metadata": {
            "name": f"{NAME}-a{attempt}-worker-{rank}",
            "namespace": namespace,
            "uid": uid or f"pod-{attempt}-{rank}",
            "resourceVersion": str(version),
            "creationTimestamp": created,
            "labels": labels(attempt) | {"training.kubeflow.org/replica-index": str(rank)},
            "ownerReferences": [
                {
                    "kind": "PyTorchJob",
                    "name": owner or f"{NAME}-a{attempt}",
                    "uid": owner_uid or f"job-{attempt}",
                    "controller": True,
                }
            ],
        },
        "spec": {"nodeName": f"node-{rank}", "containers": [{"name": "pytorch", "image": "trainer:1"}]},
        "status": {
            "phase": phase,
            "conditions": conditions or [],
            "containerStatuses": [{"name": "pytorch", "state": state}],
            **status,
        },
    }
    if deleted:
        found["metadata"]["deletionTimestamp"] = deleted
    return found


def labels(attempt: int) -> dict[str, str]:
    return {"sftjob.dev/job-name": "tiny", "sftjob.dev/job-uid": UID, "sftjob.dev/attempt": str(attempt)}


def terminated(code: int, *, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {
        "exitCode": code,
        "reason": reason,
        "message": message,
        "startedAt": "2026-01-01T11:59:30Z",
        "finishedAt": "2026-01-01T11:59:59Z",
    }
