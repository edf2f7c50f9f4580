"""What keeps pods from starting, in the cluster's words in, with field and remedy out."""

from datetime import UTC, datetime
from typing import Any

import pytest
from cluster_objects import pod, pytorch_job

from sft_operator.kubernetes import packed
from sft_operator.kubernetes.packed import Packed
from sft_operator.kubernetes.pytorch_job import TrainerDefaults
from sft_operator.kubernetes.trouble import of_controller, of_events, of_gates, of_pods, refused
from sft_operator.lifecycle.observation import Trouble
from sftjob.failure import Obstacle
from sftjob.job import ObjectMeta, SFTJob
from sftjob.spec import SFTJobSpec
from sftjob.status import AttemptKind, AttemptsStatus, SFTJobStatus

DEFAULTS = TrainerDefaults(image="trainer:1")


def a_job(**compute: Any) -> SFTJob:
    spec = {
        "model": {"loadFrom": {"uri": "pvc://models/base"}},
        "data": {"datasets": [{"name": "chats", "uri": "configMap://few/few.jsonl"}]},
        "output": [{"uri": "pvc://results/tuned"}],
        "compute": {"nodes": 2} | compute,
    }
    return SFTJob(metadata=ObjectMeta(name="tiny", namespace="team", uid="uid-1"), spec=SFTJobSpec.model_validate(spec))


def unplaced(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(1, phase="Pending", conditions=[condition])


def an_event(reason: str, message: str) -> dict[str, Any]:
    """At noon, about the pod of rank 0."""
    return {
        "metadata": {"creationTimestamp": "2026-01-01T12:00:00Z"},
        "involvedObject": {"kind": "Pod", "uid": "pod-1-0"},
        "source": {"component": "kubelet", "host": "node-7"},
        "reason": reason,
        "message": message,
    }


def waiting(reason: str, message: str) -> dict[str, Any]:
    return pod(1, phase="Pending", waiting={"reason": reason, "message": message})


@pytest.mark.parametrize(
    ("compute", "found", "reason", "begin"),
    [
        (
            {},
            unplaced('0/2 nodes are available: persistentvolumeclaim "results" not found.'),
            "ClaimMissing",
            "spec.checkpoint.storage, spec.output[0].uri: there is no PersistentVolumeClaim results in namespace team; "
            "create it",
        ),
        (
            {},
            unplaced(
                "0/2 nodes are available: 2 node has pod using PersistentVolumeClaim with the same name and "
                "ReadWriteOncePod access mode."
            ),
            "ClaimNotShared",
            "spec (claims models, results): a claim serves one node or pod at a time and 2 need it; use a claim with "
            "access mode ReadWriteMany, or spec.compute.nodes: 1: ",
        ),
        (
            {},
            unplaced("0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
            "VolumeNotMounted",
            "a claim of spec (models, results) has no volume yet; its storage class must exist and have room",
        ),
        (
            {"nodes": 1},
            unplaced("0/2 nodes are available: 2 node(s) had volume node affinity conflict."),
            "VolumeNotMounted",
            "spec (claims models, results): a claim's volume lies in a zone, or on a node, where no node takes the "
            "pod; choose nodes there by spec.compute.nodeSelector, or create the claim anew where the nodes are "
            "(kubectl describe pvc --namespace team): 0/2",
        ),
        (
            {},
            unplaced("0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."),
            "VolumeNotMounted",
            "spec (claims models, results): a claim's volume lies in a zone, or on a node, where no node takes the "
            "pod; choose nodes there by spec.compute.nodeSelector, or create the claim anew where the nodes are "
            "(kubectl describe pvc --namespace team), or use a claim that the nodes of all pods reach: 0/2",
        ),
        (
            {},
            unplaced("0/2 nodes are available: 2 Insufficient nvidia.com/gpu."),
            "Unschedulable",
            "spec.compute (nodes, resources, nodeSelector, tolerations): no node can take the pod; request what the "
            "cluster has: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
        ),
        (
            {"image": "mine:2"},
            waiting("ImagePullBackOff", 'Back-off pulling image "mine:2"'),
            "ImagePullFailed",
            "spec.compute.image: mine:2 can't be pulled; name an image that the nodes can pull, or its secret in "
            "spec.compute.imagePullSecrets: Back-off",
        ),
        (
            {},
            waiting("ErrImagePull", "not found"),
            "ImagePullFailed",
            "the operator's --trainer-image: trainer:1 can't be pulled; ",
        ),
        (
            {"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]},
            waiting("CreateContainerConfigError", 'secret "hub" not found'),
            "SecretMissing",
            "spec.compute.env[0].valueFrom.secretKeyRef: namespace team has no Secret hub with the key token;",
        ),
        (
            {"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]},
            waiting("CreateContainerConfigError", "couldn't find key token in Secret team/hub"),
            "SecretMissing",
            "spec.compute.env[0].valueFrom.secretKeyRef: namespace team has no Secret hub with the key token;",
        ),
    ],
)
def test_a_pod_that_can_not_start_says_what_to_change(
    compute: dict[str, Any], found: dict[str, Any], reason: str, begin: str
) -> None:
    trouble = of_pods(a_job(**compute), [pod(1, 1, phase="Pending"), found], DEFAULTS)
    assert trouble is not None
    assert trouble.reason == reason
    assert trouble.message.startswith(begin), trouble.message


@pytest.mark.parametrize("kind", ["initContainerStatuses", "containerStatuses"])
@pytest.mark.parametrize("reason", ["ImagePullBackOff", "CrashLoopBackOff", "CreateContainerConfigError"])
def test_a_container_of_somebody_else_that_keeps_the_pod_from_starting_is_told_by_name(kind: str, reason: str) -> None:
    mesh = {"name": "mesh", "image": "mesh:1", "state": {"waiting": {"reason": reason, "message": "not there"}}}
    ours = {"name": "pytorch", "image": "trainer:1", "state": {"waiting": {"reason": "PodInitializing"}}}
    held = pod(1, phase="Pending", containerStatuses=[ours])
    held["status"][kind] = [*held["status"].get(kind, []), mesh]
    assert of_pods(a_job(), [held], DEFAULTS) == Trouble(
        Obstacle.CONTAINER_REFUSED,
        "the container mesh of the image mesh:1, which something puts into the job's pods, does not start "
        f"({reason}); mend it, or have it leave the job's pods alone: not there",
    )


def test_a_container_of_somebody_else_that_only_takes_its_time_is_no_trouble() -> None:
    mesh = {"name": "mesh", "image": "mesh:1", "state": {"waiting": {"reason": "PodInitializing"}}}
    held = pod(1, phase="Pending", waiting={"reason": "PodInitializing"}, initContainerStatuses=[mesh])
    assert of_pods(a_job(), [held], DEFAULTS) is None


def test_gates_that_nobody_opens_are_told_by_name_from_what_the_operator_keeps_of_a_pod() -> None:
    held = pod(1, phase="Pending")
    held["spec"]["schedulingGates"] = [{"name": "example.com/quota"}, {"name": "example.com/audit"}]
    free = pod(1, 1, phase="Pending")
    kept = [Packed.of(one, packed.pod).unpacked() for one in (held, free)]
    assert of_gates(kept) == Trouble(
        Obstacle.SCHEDULING_GATED,
        "something holds the pods back by scheduling gates (example.com/audit, example.com/quota); look whether it "
        "runs, or have it leave the job's pods alone",
    )
    assert of_gates([free]) is None


@pytest.mark.parametrize(
    ("saved_step", "remedy"),
    [
        (4, "put it back into its registry, for the job's checkpoint is of it: not found"),
        (None, "suspend the job once, and its next attempt takes trainer:1: not found"),
    ],
)
def test_an_image_that_the_operator_had_before_is_told_as_such(saved_step: int | None, remedy: str) -> None:
    status = SFTJobStatus(attempts=AttemptsStatus(current=2, image="trainer:0", saved_step=saved_step))
    job = a_job().model_copy(update={"status": status})
    assert of_pods(job, [waiting("ErrImagePull", "not found")], DEFAULTS) == Trouble(
        Obstacle.IMAGE_PULL_FAILED,
        f"status.attempts.image, once the operator's --trainer-image: trainer:0 can't be pulled; {remedy}",
    )


@pytest.mark.parametrize(
    ("event", "message", "reason", "begin"),
    [
        (
            "FailedCreatePod",
            'Error creating: pods "x" is forbidden: exceeded quota: cpus, requested: requests.cpu=2',
            "PodRefused",
            "the quota of namespace team is used up; raise it, or ask for less in spec.compute: Error creating",
        ),
        (
            "FailedCreatePod",
            'Error creating: pods "x" is forbidden: failed quota: cpus: must specify limits.cpu for: pytorch',
            "PodRefused",
            "the quota of namespace team requires every pod to state its resources; set spec.compute.resources: Error",
        ),
        (
            "FailedCreatePod",
            'Error creating: pods "x" is forbidden: maximum cpu usage per Container is 1, but limit is 2',
            "PodRefused",
            "a LimitRange of namespace team refuses the pod; change spec.compute.resources to what it allows: Error",
        ),
        (
            "FailedCreatePod",
            'Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
            "PodRefused",
            "the Pod Security of namespace team refuses the pod; remove from spec.compute what it names, or give the",
        ),
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "config-map-0" : configmap "few" not found',
            "ConfigMapMissing",
            "spec.data.datasets[0].uri: create the ConfigMap few with the keys few.jsonl in namespace team, and the "
            "job starts by itself: ",
        ),
        (
            "FailedAttachVolume",
            'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) x',
            "ClaimNotShared",
            "spec (claims models, results): a claim serves one node or pod at a time and 2 need it; ",
        ),
        (
            "FailedCreateService",
            'Error creating: services "x" is forbidden: exceeded quota: few, requested: services=1, used: services=2',
            "PodRefused",
            "the quota of namespace team is used up; raise it, or ask for less in spec.compute: Error creating",
        ),
        (
            "FailedCreateService",
            "Error creating: admission webhook denied the request",
            "PodRefused",
            "the API server refuses the attempt's services: Error creating",
        ),
        (
            "FailedCreatePodSandBox",
            'Failed to create pod sandbox: plugin type="calico" failed (add): no IP addresses left',
            "ContainerRefused",
            "node-7 can't set up the pod; look at its network plugin and container runtime, and the job starts by "
            "itself: Failed to create pod sandbox: ",
        ),
        (
            "NetworkNotReady",
            "network is not ready: cni plugin not initialized",
            "ContainerRefused",
            "node-7 can't set up the pod; look at its network plugin and container runtime, and the job starts by "
            "itself: network is not ready: ",
        ),
    ],
)
def test_an_event_says_what_to_change(event: str, message: str, reason: str, begin: str) -> None:
    old = {"metadata": {"creationTimestamp": "2026-01-01T11:00:00Z"}, "reason": "Scheduled", "message": "fine"}
    new = an_event(event, message)
    now = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)
    trouble = of_events(a_job(), [old, new], pods=[], lacks_pods=True, now=now)
    assert trouble is not None
    assert trouble.reason == reason
    assert trouble.message.startswith(begin), trouble.message


@pytest.mark.parametrize(
    ("event", "minutes", "lacks_pods", "reason"),
    [
        # training-operator has tried again, as seldom as it ever does, and been refused: the next word is on its way.
        ("FailedCreatePod", 17, True, "PodRefused"),
        ("FailedCreatePod", 21, True, None),
        # Another try went well, and the pod is there.
        ("FailedCreatePod", 1, False, None),
        ("FailedMount", 4, True, "VolumeNotMounted"),
        ("FailedMount", 6, True, None),
    ],
)
def test_an_event_counts_until_it_would_have_been_told_again(
    event: str, minutes: int, lacks_pods: bool, reason: str | None
) -> None:
    now = datetime(2026, 1, 1, 12, minutes, tzinfo=UTC)
    trouble = of_events(a_job(), [an_event(event, "no")], pods=[], lacks_pods=lacks_pods, now=now)
    assert (trouble and trouble.reason) == reason


def test_what_a_node_could_not_do_is_over_once_it_has_not_been_told_for_a_minute() -> None:
    """Its image is pulled meanwhile, and older kubelets tell no address before that is done."""
    for event in ("FailedCreatePodSandBox", "NetworkNotReady"):
        told = [
            of_events(a_job(), [an_event(event, "no")], pods=[pod(1, phase="Pending")], lacks_pods=False, now=now)
            for now in (datetime(2026, 1, 1, 12, 0, second, tzinfo=UTC) for second in (20, 59))
        ]
        assert [trouble and trouble.reason for trouble in told] == [Obstacle.CONTAINER_REFUSED] * 2
        later = datetime(2026, 1, 1, 12, 1, 1, tzinfo=UTC)
        assert of_events(a_job(), [an_event(event, "no")], pods=[], lacks_pods=False, now=later) is None


def test_what_a_node_could_not_do_is_over_once_the_pod_has_an_address() -> None:
    events, now = [an_event("FailedCreatePodSandBox", "no")], datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)
    pulling = pod(1, phase="Pending", podIP="10.0.0.7", waiting={"reason": "ContainerCreating"})
    assert of_events(a_job(), events, pods=[pulling], lacks_pods=False, now=now) is None
    another = pod(1, 1, phase="Pending", podIP="10.0.0.8", waiting={"reason": "ContainerCreating"})
    told = of_events(a_job(), events, pods=[another], lacks_pods=False, now=now)
    assert told is not None
    assert told.reason is Obstacle.CONTAINER_REFUSED


def test_a_pod_alone_needs_no_service() -> None:
    events, now = [an_event("FailedCreateService", "no")], datetime(2026, 1, 1, 12, 1, tzinfo=UTC)
    preflight = SFTJobStatus(attempts=AttemptsStatus(current=1, kind=AttemptKind.PREFLIGHT))
    for alone in (a_job(nodes=1), a_job(nodes=2).model_copy(update={"status": preflight})):
        assert of_events(alone, events, pods=[], lacks_pods=False, now=now) is None


def test_a_config_map_that_is_missing_is_told_with_every_field_of_a_script_that_names_it() -> None:
    script = {"uri": "configMap://few/train.py", "args": ["--data", "configMap://few/few.jsonl", "pvc://inputs/x"]}
    spec = {"script": script, "output": [{"uri": "pvc://results/tuned"}]}
    job = a_job()
    job = job.model_copy(update={"spec": SFTJobSpec.model_validate(spec)})
    message = 'MountVolume.SetUp failed for volume "config-map-0" : configmap "few" not found'
    events, now = [an_event("FailedMount", message)], datetime(2026, 1, 1, 12, 1, tzinfo=UTC)
    trouble = of_events(job, events, pods=[], lacks_pods=False, now=now)
    assert trouble is not None
    assert trouble.message.startswith(
        "spec.script.uri, spec.script.args[1]: create the ConfigMap few with the keys train.py, few.jsonl in namespace "
        "team, and the job starts by itself: "
    )


def test_a_webhook_that_does_not_answer_is_told_with_the_service_to_look_at() -> None:
    message = (
        'Internal error occurred: failed calling webhook "mpytorchjob.kb.io": failed to call webhook: Post '
        '"https://kueue-webhook-service.kueue-system.svc:443/mutate-kubeflow-org-v1-pytorchjob?timeout=10s": '
        'no endpoints available for service "kueue-webhook-service"'
    )
    assert refused(message) == Trouble(
        Obstacle.ATTEMPT_REFUSED,
        "the API server refused the attempt's PyTorchJob because the webhook mpytorchjob.kb.io does not answer; look "
        "whether its service kueue-webhook-service has pods that run (kubectl get pods --namespace kueue-system), and "
        f"the job starts by itself: {message}",
    )
    told = refused("spec.x: Invalid value")
    assert told.message == "the API server refused the attempt's PyTorchJob: spec.x: Invalid value"


@pytest.mark.parametrize(
    ("conditions", "is_silent"),
    [
        ([], True),
        ([("Created", "True")], False),
        # Its queue has let it go, and nobody is there to see it.
        ([("Created", "True"), ("Suspended", "True")], True),
        ([("Created", "True"), ("Suspended", "False"), ("Running", "True")], False),
    ],
)
def test_a_pytorchjob_that_nobody_takes_up_is_told(conditions: list[tuple[str, str]], is_silent: bool) -> None:
    found = pytorch_job(1)
    found["status"]["conditions"] = [{"type": type_, "status": status} for type_, status in conditions]
    told = of_controller([found], [])
    assert (told is not None and told.reason is Obstacle.CONTROLLER_SILENT) == is_silent
    assert of_controller([found], [pod(1, phase="Pending")]) is None


def test_pods_that_only_take_their_time_are_no_trouble() -> None:
    assert of_pods(a_job(), [waiting("ContainerCreating", ""), pod(1, 1, phase="Pending")], DEFAULTS) is None
