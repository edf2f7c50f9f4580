"""What keeps an attempt's pods from starting, and what to change: pods and events in, one Trouble out.

Pure; called by the backend. The first that is found is told: a pod that can't be placed pulls no image.
"""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta

from sft_operator.kubernetes.api import Object
from sft_operator.kubernetes.mounts import claim_of, config_maps
from sft_operator.kubernetes.pytorch_job import CONTAINER, TrainerDefaults, image_of
from sft_operator.lifecycle.observation import Trouble
from sft_operator.lifecycle.preflight import launchers
from sftjob import names
from sftjob.failure import Obstacle
from sftjob.job import SFTJob

RECENT = timedelta(minutes=5)
"""Events stay an hour; what goes on wrong is told again within minutes."""
NODE_RECENT = timedelta(seconds=60)
"""But for what a node can't set up: it tries every 15 s, and a new node fails until its network is up."""
POD_TRIED_AGAIN = timedelta(minutes=20)
"""But for a pod that is refused: training-operator's pauses between two tries double up to 1,000 s."""

_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CONTAINER_REASONS = ("CreateContainerError", "RunContainerError")
_WEBHOOK = re.compile(r'failed calling webhook "([^"]+)".*?https://([a-z0-9-]+)\.([a-z0-9-]+)\.svc')
_NO_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
_NO_CONFIG_MAP = re.compile(r'configmap "([^"]+)" not found')
_NO_SECRET = re.compile(r'secret "([^"]+)" not found')
_VOLUME_ELSEWHERE = re.compile(r"volume node affinity conflict|PersistentVolume's node affinity")
"""In the words of Kubernetes 1.30, and of 1.34."""


def of_pods(job: SFTJob, pods: Iterable[Object], defaults: TrainerDefaults) -> Trouble | None:
    """From the pods' own status, which is there the moment that something is wrong."""
    for pod in pods:
        found = _unplaced(job, pod) or _waiting(job, pod, defaults)
        if found is not None:
            return found
    return None


def of_events(
    job: SFTJob, events: Iterable[Object], *, pods: Iterable[Object], lacks_pods: bool, now: datetime
) -> Trouble | None:
    """From warnings about an attempt's PyTorchJob and its `pods`: what happens before a pod, around its volumes, or on
    its node.

    `lacks_pods`: not all of the attempt's pods are there. Else what was refused has been created since.
    """
    # Their node has set them up since.
    with_address = {pod["metadata"]["uid"] for pod in pods if "podIP" in pod["status"]}
    for event in sorted(events, key=_last_seen, reverse=True):
        age, message = now - _last_seen(event), event.get("message", "")
        match event.get("reason"):
            case "FailedCreatePod" if lacks_pods and age < POD_TRIED_AGAIN:
                return Trouble(Obstacle.POD_REFUSED, f"{_refusal_remedy(job, message, what='pods')}: {message}")
            # One pod alone needs no name to be found by.
            case "FailedCreateService" if launchers(job, job.status.attempts.current) > 1 and age < RECENT:
                return Trouble(Obstacle.POD_REFUSED, f"{_refusal_remedy(job, message, what='services')}: {message}")
            case "FailedMount" | "FailedAttachVolume" if age < RECENT:
                return _of_volume(job, message)
            case "FailedCreatePodSandBox" | "NetworkNotReady" if age < NODE_RECENT:
                if event["involvedObject"]["uid"] not in with_address:
                    return _of_node(event, message)
    return None


def of_gates(pods: Iterable[Object]) -> Trouble | None:
    """No scheduler looks at a pod before its gates are gone."""
    gates = sorted({gate["name"] for pod in pods for gate in pod["spec"].get("schedulingGates", [])})
    if not gates:
        return None
    return Trouble(
        Obstacle.SCHEDULING_GATED,
        f"something holds the pods back by scheduling gates ({', '.join(gates)}); look whether it runs, or have it "
        "leave the job's pods alone",
    )


def of_controller(pytorch_jobs: Iterable[Object], pods: Iterable[Object]) -> Trouble | None:
    """A PyTorchJob of the attempt that nobody has taken up, or not again since its queue has let it go."""
    if any(True for _ in pods) or any(map(_is_taken_up, pytorch_jobs)):
        return None
    return Trouble(
        Obstacle.CONTROLLER_SILENT,
        "no controller has picked up the attempt's PyTorchJob; check that Kubeflow's training-operator runs: "
        "kubectl get pods --namespace kubeflow",
    )


def _is_taken_up(pytorch_job: Object) -> bool:
    told = {c["type"]: c["status"] for c in pytorch_job.get("status", {}).get("conditions", [])}
    return bool(told) and told.get("Suspended") != "True"


def of_queue(held: Object, word: str | None) -> Trouble | None:
    """From a PyTorchJob that is held back, and what its queue says of it. Kueue may have given it another queue than
    its job names, and holds it back for ever where it has none."""
    queue = held["metadata"]["labels"].get(names.QUEUE_LABEL)
    if queue is None:
        return Trouble(
            Obstacle.QUEUE_MISSING,
            "spec.queue: something suspends PyTorchJobs that name no queue; create the job anew with spec.queue.name, "
            "or have them left alone in this namespace (of Kueue: manageJobsWithoutQueueName and "
            "managedJobsNamespaceSelector)" + (f": {word}" if word else ""),
        )
    if word is not None:
        return None
    return Trouble(
        Obstacle.QUEUE_SILENT,
        f"no controller has picked up the attempt's PyTorchJob for the queue {queue}; check that Kueue runs "
        "(kubectl get pods --namespace kueue-system) and has kubeflow.org/pytorchjob among its integrations",
    )


def name_conflict(name: str) -> Trouble:
    return Trouble(
        Obstacle.NAME_CONFLICT,
        f"the PyTorchJob {name} exists and is not this job's; delete it, or name this job differently",
    )


def pytorch_jobs_missing() -> Trouble:
    return Trouble(
        Obstacle.PYTORCH_JOBS_MISSING,
        "this cluster has no PyTorchJobs (pytorchjobs.kubeflow.org); install Kubeflow's training-operator, v1.9 or "
        "later: the job starts by itself then",
    )


def refused(message: str) -> Trouble:
    webhook, remedy = _WEBHOOK.search(message), ""
    if webhook is not None:
        name, service, namespace = webhook.groups()
        remedy = (
            f" because the webhook {name} does not answer; look whether its service {service} has pods that run "
            f"(kubectl get pods --namespace {namespace}), and the job starts by itself"
        )
    return Trouble(Obstacle.ATTEMPT_REFUSED, f"the API server refused the attempt's PyTorchJob{remedy}: {message}")


def _unplaced(job: SFTJob, pod: Object) -> Trouble | None:
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = condition.get("message", "")
            missing = _NO_CLAIM.search(message)
            if missing:
                return _missing_claim(job, missing[1])
            if "unbound immediate PersistentVolumeClaims" in message:
                return _unbound(job, message)
            if "ReadWriteOncePod" in message:
                return _not_shared(job, message)
            if _VOLUME_ELSEWHERE.search(message):
                return _elsewhere(job, message)
            if condition.get("reason") == "Unschedulable":
                fields = "spec.compute (nodes, resources, nodeSelector, tolerations)"
                avoided = ", ".join(job.status.attempts.avoided_nodes)
                away = (
                    f" (the job avoids {avoided} after a GPU fault; suspend and resume it to clear that)"
                    if avoided
                    else ""
                )
                return Trouble(
                    Obstacle.UNSCHEDULABLE,
                    f"{fields}: no node can take the pod; request what the cluster has{away}: {message}",
                )
    return None


def _waiting(job: SFTJob, pod: Object, defaults: TrainerDefaults) -> Trouble | None:
    status = pod["status"]
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container["state"].get("waiting")
        if waiting is None:
            continue
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if container["name"] != CONTAINER:
            if reason in (*_IMAGE_REASONS, *_CONTAINER_REASONS, "CreateContainerConfigError", "CrashLoopBackOff"):
                return _of_stranger(container, reason, message)
            continue
        if reason in _IMAGE_REASONS:
            return _unpulled(job, defaults, message)
        if reason == "CreateContainerConfigError":
            return _missing_secret(job, message) or Trouble(Obstacle.CONTAINER_REFUSED, f"spec.compute: {message}")
        if reason in _CONTAINER_REASONS:
            return Trouble(Obstacle.CONTAINER_REFUSED, f"the container can't be started: {message}")
    return None


def _unpulled(job: SFTJob, defaults: TrainerDefaults, message: str) -> Trouble:
    image, path = image_of(job, defaults), "spec.compute.image"
    remedy = "name an image that the nodes can pull, or its secret in spec.compute.imagePullSecrets"
    if job.spec.compute.image is None:
        path = "the operator's --trainer-image"
        if image != defaults.image:
            path = f"status.attempts.image, once {path}"
            remedy = f"suspend the job once, and its next attempt takes {defaults.image}"
            if job.status.saved_step is not None:
                remedy = "put it back into its registry, for the job's checkpoint is of it"
    return Trouble(Obstacle.IMAGE_PULL_FAILED, f"{path}: {image} can't be pulled; {remedy}: {message}")


def _of_stranger(container: Object, reason: str, message: str) -> Trouble:
    """None of ours is an init container, or stands beside the launcher's."""
    return Trouble(
        Obstacle.CONTAINER_REFUSED,
        f"the container {container['name']} of the image {container['image']}, which something puts into the job's "
        f"pods, does not start ({reason}); mend it, or have it leave the job's pods alone: {message}",
    )


def _missing_claim(job: SFTJob, claim: str) -> Trouble:
    namespace = job.metadata.namespace
    return Trouble(
        Obstacle.CLAIM_MISSING,
        f"{_paths(job, claim)}: there is no PersistentVolumeClaim {claim} in namespace {namespace}; create it, "
        "and the job starts by itself",
    )


def _unbound(job: SFTJob, message: str) -> Trouble:
    claims = ", ".join(sorted({claim for uri in job.spec.uris if (claim := claim_of(uri))}))
    return Trouble(
        Obstacle.VOLUME_NOT_MOUNTED,
        f"a claim of spec ({claims}) has no volume yet; its storage class must exist and have room (kubectl describe "
        f"pvc --namespace {job.metadata.namespace}), and the job starts by itself: {message}",
    )


def _elsewhere(job: SFTJob, message: str) -> Trouble:
    claims = ", ".join(sorted({claim for uri in job.spec.uris if (claim := claim_of(uri))}))
    shared = ", or use a claim that the nodes of all pods reach" if job.spec.compute.nodes > 1 else ""
    return Trouble(
        Obstacle.VOLUME_NOT_MOUNTED,
        f"spec (claims {claims}): a claim's volume lies in a zone, or on a node, where no node takes the pod; choose "
        "nodes there by spec.compute.nodeSelector, or create the claim anew where the nodes are (kubectl describe pvc "
        f"--namespace {job.metadata.namespace}){shared}: {message}",
    )


def _not_shared(job: SFTJob, message: str) -> Trouble:
    claims = {claim for uri in job.spec.uris if (claim := claim_of(uri))}
    named = next((claim for claim in sorted(claims) if claim in message), None)
    where = _paths(job, named) if named else "spec (claims " + ", ".join(sorted(claims)) + ")"
    return Trouble(
        Obstacle.CLAIM_NOT_SHARED,
        f"{where}: a claim serves one node or pod at a time and {job.spec.compute.nodes} need it; use a claim with "
        f"access mode ReadWriteMany, or spec.compute.nodes: 1: {message}",
    )


def _missing_secret(job: SFTJob, message: str) -> Trouble | None:
    secret = _NO_SECRET.search(message)
    named = secret[1] if secret else None
    for index, variable in enumerate(job.spec.compute.env):
        source = variable.value_from
        if source is not None and (
            source.secret_key_ref.name == named or f"key {source.secret_key_ref.key} " in message
        ):
            key = source.secret_key_ref
            return Trouble(
                Obstacle.SECRET_MISSING,
                f"spec.compute.env[{index}].valueFrom.secretKeyRef: namespace {job.metadata.namespace} has no Secret "
                f"{key.name} with the key {key.key}; create it, and the job starts by itself",
            )
    return None


def _of_volume(job: SFTJob, message: str) -> Trouble:
    if "Multi-Attach" in message:
        return _not_shared(job, message)
    if _NO_CONFIG_MAP.search(message) or "references non-existent config key" in message:
        wanted = ", ".join(f"{name} with the keys {', '.join(keys)}" for name, keys in config_maps(job.spec).items())
        return Trouble(
            Obstacle.CONFIG_MAP_MISSING,
            f"{_config_map_paths(job)}: create the ConfigMap {wanted} in namespace {job.metadata.namespace}, and the "
            f"job starts by itself: {message}",
        )
    return Trouble(
        Obstacle.VOLUME_NOT_MOUNTED, f"a volume can't be mounted; look at its claim and its storage: {message}"
    )


def _of_node(event: Object, message: str) -> Trouble:
    node = event.get("source", {}).get("host") or "a node"
    return Trouble(
        Obstacle.CONTAINER_REFUSED,
        f"{node} can't set up the pod; look at its network plugin and container runtime, and the job starts by "
        f"itself: {message}",
    )


def _refusal_remedy(job: SFTJob, message: str, *, what: str) -> str:
    if "exceeded quota" in message:
        return f"the quota of namespace {job.metadata.namespace} is used up; raise it, or ask for less in spec.compute"
    if "failed quota" in message:
        return (
            f"the quota of namespace {job.metadata.namespace} requires every pod to state its resources; set "
            "spec.compute.resources"
        )
    if "violates PodSecurity" in message:
        return (
            f"the Pod Security of namespace {job.metadata.namespace} refuses the pod; remove from spec.compute what it "
            "names, or give the namespace another level (label pod-security.kubernetes.io/enforce)"
        )
    if "per Container" in message or "per Pod" in message:
        return (
            f"a LimitRange of namespace {job.metadata.namespace} refuses the pod; change spec.compute.resources to "
            "what it allows"
        )
    if "serviceaccount" in message:
        return f"namespace {job.metadata.namespace} lacks the service account of trainer pods; create it"
    if "PriorityClass" in message:
        return "spec.compute.priorityClassName: there is no such PriorityClass; create it, or name another"
    return f"the API server refuses the attempt's {what}"


def _paths(job: SFTJob, claim: str) -> str:
    """The fields of the spec that speak of a claim."""
    return ", ".join(path for path, uri in job.spec.places.items() if claim_of(uri) == claim)


def _config_map_paths(job: SFTJob) -> str:
    return ", ".join(path for path, uri in job.spec.places.items() if uri.startswith("configMap://"))


def _last_seen(event: Object) -> datetime:
    seen = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    return datetime.fromisoformat(seen)
