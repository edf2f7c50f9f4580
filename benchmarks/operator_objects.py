"""The objects of `benchmarks.operator`: jobs, jobs that have finished long ago, and pods in place of a kubelet's."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sft_operator.kubernetes.pytorch_job import CONTAINER, TrainerDefaults, pytorch_job
from sft_operator.lifecycle.columns import columns
from sft_operator.lifecycle.conditions import conditions
from sft_operator.lifecycle.plan import launch_plan
from sftjob.failure import Reason
from sftjob.job import ObjectMeta, SFTJob
from sftjob.outcome import Artifact, Outcome
from sftjob.progress import Progress, Stage
from sftjob.receipt import DataReceipt
from sftjob.spec import SFTJobSpec
from sftjob.status import AttemptRecord, AttemptsStatus, Phase, SFTJobStatus

Object = dict[str, Any]

SCHEDULER = "nobody"
"""Of pods that only have to exist: no scheduler, kubelet or node has any part in what is measured."""

_BEGAN = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
_ENDED = _BEGAN + timedelta(hours=2)
_DIGEST = "sha256:" + "0123456789abcdef" * 4


def job(name: str) -> Object:
    spec = {
        "model": {"loadFrom": {"uri": "pvc://models/SmolLM2-135M-Instruct"}},
        "data": {"datasets": [{"name": "tickets", "uri": "pvc://data/tickets.jsonl"}]},
        "training": {"totalEpoch": 1, "globalBatchSize": 64, "optimizer": {"lr": 6e-5}},
        "output": [{"uri": f"pvc://results/{name}"}],
        "compute": {"nodes": 1, "processesPerNode": 1},
    }
    return {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": {"name": name}, "spec": spec}


def child(name: str, namespace: str) -> Object:
    """The PyTorchJob that the operator makes of such a job, without an owner and for no scheduler."""
    metadata = ObjectMeta(name=name, namespace=namespace, uid=name)
    stored = SFTJob(metadata=metadata, spec=SFTJobSpec.model_validate(job(name)["spec"]))
    plan = launch_plan(stored, 1, path_of=lambda uri: f"/claims/{uri}")
    body = pytorch_job(stored, plan, TrainerDefaults(image="none"))
    del body["metadata"]["ownerReferences"]
    body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["schedulerName"] = SCHEDULER
    return body


def finished_status() -> Object:
    """Of a job that was disrupted once and then went to its end, as the operator leaves it."""
    record = AttemptRecord(
        number=1,
        reason=Reason.PREEMPTED,
        exit_code=75,
        node_rank=0,
        pod="tickets-01234567-a1-worker-0",
        node="node-17",
        message="Preempting: node-17 made room for a pod of higher priority",
        last_step=420,
        saved_step=420,
        log_tail="step 420 loss 1.310\n" * 10,
        started_at=_BEGAN,
        ended_at=_BEGAN + timedelta(hours=1),
    )
    last = record.model_copy(
        update={"number": 2, "reason": Reason.SUCCEEDED, "message": "", "resumed_from": 420, "ended_at": _ENDED}
    )
    status = SFTJobStatus(
        phase=Phase.SUCCEEDED,
        observed_generation=1,
        progress=Progress(
            attempt=2,
            stage=Stage.PUBLISHING,
            step=1000,
            total_steps=1000,
            epoch=1.0,
            loss=1.234,
            learning_rate=1e-6,
            grad_norm=0.7,
            tokens_per_second=41234.5,
            resumed_from=420,
            saved_step=1000,
            pod_uid="01234567-89ab-cdef-0123-456789abcdef",
            reported_at=_ENDED,
        ),
        attempts=AttemptsStatus(current=2, disruptions=1, saved_step=1000, started_at=_BEGAN, history=[last, record]),
        data=DataReceipt(samples=64000, tokens=35_000_000, trained_tokens=9_000_000, packs=9000),
        artifacts=[Artifact(uri="pvc://results/tickets", format="hf", digest=_DIGEST, bytes=269_060_552)],
    )
    facts = conditions(status, generation=1, failure=None, trouble=None, now=_ENDED)
    return status.model_copy(update={"conditions": facts, "columns": columns(status)}).to_json_dict()


def pod(pytorch_job: Object) -> Object:
    """The one pod of this job's, as the controller makes it."""
    metadata = pytorch_job["metadata"]
    owner = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": metadata["name"], "uid": metadata["uid"]}
    template = pytorch_job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name']}-worker-0",
            "labels": template["metadata"]["labels"] | {"training.kubeflow.org/replica-index": "0"},
            "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}],
        },
        "spec": template["spec"] | {"schedulerName": SCHEDULER, "restartPolicy": "Never"},
    }


def running() -> Object:
    """A pod's status. It has no address: what a launcher would be asked for is not part of the figures."""
    return {"phase": "Running", "containerStatuses": [_container({"running": {"startedAt": _now()}})]}


def succeeded() -> Object:
    now = datetime.now(UTC)
    outcome = Outcome(
        attempt=1,
        node_rank=0,
        reason=Reason.SUCCEEDED,
        exit_code=0,
        last_step=1000,
        saved_step=1000,
        final_digest=_DIGEST,
        started_at=now,
        ended_at=now,
    )
    end = {"exitCode": 0, "reason": "Completed", "startedAt": _now(), "finishedAt": _now()}
    return {
        "phase": "Succeeded",
        "containerStatuses": [_container({"terminated": end | {"message": outcome.to_message()}})],
    }


def _container(state: Object) -> Object:
    return {"name": CONTAINER, "image": "none", "imageID": "", "ready": False, "restartCount": 0, "state": state}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
