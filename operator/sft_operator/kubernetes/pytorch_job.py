"""A job and a launch plan in, the attempt's PyTorchJob out. All knowledge of `kubeflow.org/v1` is here.

Worker-only, so that no init container is added and no master alone decides; pods are never restarted, and nothing is
retried, timed or cleaned up by the controller: that is the operator's.
"""

from dataclasses import dataclass

from sft_operator.kubernetes.api import PYTORCH_JOBS_API, Object
from sft_operator.kubernetes.mounts import volumes
from sftjob import names
from sftjob.compute import EnvVar, ResourcesSpec
from sftjob.job import ObjectMeta, SFTJob
from sftjob.plan import LaunchPlan
from sftjob.quantity import exact

CONTAINER = "pytorch"
"""The controller asks for this name."""
RANK_LABEL = "training.kubeflow.org/replica-index"

_PREFLIGHT_REQUESTS = {"cpu": "4", "memory": "16Gi"}
"""At most: of a pod that reads and tokenises."""
_NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""A mesh's proxy would be in the way of the ranks' own ports, and outlive them. A label; for older Istio an annotation.
"""
_USER = 1000
_MASTER_PORT = 23456
"""Of the service that the controller makes for each worker."""


@dataclass(frozen=True)
class TrainerDefaults:
    """What a cluster's administrator decides for the pods of all jobs."""

    image: str
    service_account: str = "default"
    image_pull_secrets: tuple[str, ...] = ()


def pytorch_job(job: SFTJob, plan: LaunchPlan, defaults: TrainerDefaults) -> Object:
    metadata = job.metadata
    labels = attempt_labels(metadata, plan.attempt)
    queue = plan.spec.queue
    # Whoever keeps the queue lets it run, and may take it back: `suspend` is never touched from here.
    queued = {names.QUEUE_LABEL: queue.name} if queue else {}
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": metadata.name,
        "uid": metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    worker = {
        "replicas": plan.nodes,
        "restartPolicy": "Never",
        "template": {"metadata": _pod_metadata(labels), "spec": _pod_spec(job, plan, defaults)},
    }
    return {
        "apiVersion": PYTORCH_JOBS_API,
        "kind": "PyTorchJob",
        "metadata": {
            "name": names.attempt_name(metadata.name, metadata.uid, plan.attempt),
            "namespace": metadata.namespace,
            "labels": labels | queued,
            "ownerReferences": [owner],
        },
        "spec": {
            "nprocPerNode": "1" if plan.prepare_only else str(plan.spec.compute.processes_per_node),
            "runPolicy": {"cleanPodPolicy": "Running"} | ({"suspend": True} if queue else {}),
            "pytorchReplicaSpecs": {"Worker": worker},
        },
    }


def _pod_metadata(labels: dict[str, str]) -> Object:
    return {"labels": labels | _NO_SIDECAR, "annotations": dict(_NO_SIDECAR)}


def image_of(job: SFTJob, defaults: TrainerDefaults) -> str:
    """Of the newest attempt. One that an earlier version announced has none in the status."""
    return job.spec.compute.image or job.status.attempts.image or defaults.image


def attempt_labels(metadata: ObjectMeta, attempt: int) -> dict[str, str]:
    """By which watches and lists find it, and its pods."""
    return {
        names.JOB_LABEL: metadata.name,
        names.JOB_UID_LABEL: metadata.uid,
        names.ATTEMPT_LABEL: str(attempt),
    }


def is_ours(found: Object, *, uid: str) -> bool:
    """Controlled by this very job."""
    owners = found["metadata"].get("ownerReferences", [])
    return any(owner["uid"] == uid and owner.get("controller") for owner in owners)


def has_finished(found: Object) -> bool:
    """The controller makes no more pods for it."""
    conditions = found.get("status", {}).get("conditions", [])
    return any(c["type"] in ("Succeeded", "Failed") and c["status"] == "True" for c in conditions)


def is_suspended(found: Object) -> bool:
    """Not by this operator: its queue has not let it run yet, or somebody has taken it back."""
    return bool(found["spec"]["runPolicy"].get("suspend"))


def _pod_spec(job: SFTJob, plan: LaunchPlan, defaults: TrainerDefaults) -> Object:
    compute, policy = plan.spec.compute, plan.spec.run_policy
    found, mounts = volumes(plan.spec)
    # What the ranks of one node share lies in memory, and is counted as theirs.
    found += [
        {"name": "scratch", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    mounts += [
        {"name": "scratch", "mountPath": names.POD_SCRATCH},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    container = {
        "name": CONTAINER,
        "image": image_of(job, defaults),
        # The kubelet puts variables into arguments: a dollar of the plan's own is written twice.
        "command": ["python", "-m", "sft_trainer.launcher", "--plan", plan.to_json().replace("$", "$$")],
        "env": _environment(job, plan),
        "ports": [{"name": "progress", "containerPort": names.SERVE_PORT}],
        "resources": _resources(_of_preflight(compute.resources) if plan.prepare_only else compute.resources),
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    secrets = [*defaults.image_pull_secrets, *(secret.name for secret in compute.image_pull_secrets)]
    spec: Object = {
        "serviceAccountName": defaults.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": policy.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            # A fresh claim is root's: this makes it writable, and is not repeated over large ones.
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": found,
    }
    if secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(secrets)]
    if compute.node_selector:
        spec["nodeSelector"] = dict(compute.node_selector)
    tolerations = [toleration.to_json_dict() for toleration in compute.tolerations]
    if plan.prepare_only:
        tolerations += [one for one in _of_tainted_devices(compute.resources) if one not in tolerations]
    if tolerations:
        spec["tolerations"] = tolerations
    if job.status.attempts.avoided_nodes:
        spec["affinity"] = {"nodeAffinity": _away_from(job.status.attempts.avoided_nodes)}
    if compute.priority_class_name:
        spec["priorityClassName"] = compute.priority_class_name
    return spec


def _of_tainted_devices(resources: ResourcesSpec) -> list[Object]:
    """What a cluster with ExtendedResourceToleration, as GKE, gives to pods that request devices, and to no others: a
    pre-flight requests none, and its node selector may name such nodes."""
    return [{"key": device, "operator": "Exists", "effect": "NoSchedule"} for device in resources.devices]


def _away_from(nodes: list[str]) -> Object:
    """By the node's own name, not by a label that may differ; the API server takes one name a requirement."""
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": fields}]}}


def _environment(job: SFTJob, plan: LaunchPlan) -> list[Object]:
    attempt = names.attempt_name(job.metadata.name, job.metadata.uid, plan.attempt)
    placement = {
        # Alone in its pod it needs no name to be found by.
        names.MASTER_ADDRESS_VARIABLE: "localhost" if plan.nodes == 1 else f"{attempt}-worker-0",
        names.MASTER_PORT_VARIABLE: str(_MASTER_PORT),
        names.SCRATCH_VARIABLE: names.POD_SCRATCH,
        names.TERMINATION_MESSAGE_VARIABLE: "/dev/termination-log",
        names.SERVE_ADDRESS_VARIABLE: f":{names.SERVE_PORT}",
    }
    fields = {
        names.NODE_RANK_VARIABLE: f"metadata.labels['{RANK_LABEL}']",
        names.POD_UID_VARIABLE: "metadata.uid",
    }
    return [
        *(_variable(variable) for variable in plan.spec.compute.env),
        *({"name": name, "value": value} for name, value in placement.items()),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
    ]


def _variable(variable: EnvVar) -> Object:
    if variable.value_from is None:
        assert variable.value is not None
        return {"name": variable.name, "value": variable.value.replace("$", "$$")}
    key = variable.value_from.secret_key_ref
    return {"name": variable.name, "valueFrom": {"secretKeyRef": {"name": key.name, "key": key.key}}}


def _of_preflight(resources: ResourcesSpec) -> ResourcesSpec:
    """Whoever asks for a whole node waits for its accelerators too; limits stay."""
    kept = resources.without_devices()
    # Where nothing is requested, the API server takes the limit.
    asked = kept.limits | kept.requests
    least = {name: min(asked[name], most, key=exact) for name, most in _PREFLIGHT_REQUESTS.items() if name in asked}
    return kept.model_copy(update={"requests": asked | least})


def _resources(resources: ResourcesSpec) -> Object:
    amounts = {"requests": resources.requests, "limits": resources.limits}
    return {kind: {name: str(amount) for name, amount in of.items()} for kind, of in amounts.items() if of}
