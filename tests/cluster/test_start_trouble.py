"""What keeps a job from starting, on the real cluster: told with what to change, and over as soon as it was changed."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from operator_room import Room, reasons, room, small_job
from real_cluster import Cluster, claim

from benchmarks.training_operator import TrainingOperator
from cluster.client import Client
from sftjob.names import attempt_name

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def starting(
    with_jobs: Cluster, tmp_path_factory: pytest.TempPathFactory, smollm2: Path, chats: Path
) -> Iterator[Room]:
    """With an operator; for jobs of which none trains for long."""
    with room(with_jobs, "starting", tmp_path_factory.mktemp("room"), model=smollm2, chats=chats) as made:
        made.start_operator()
        yield made


def with_image(manifest: dict[str, Any]) -> None:
    manifest["spec"]["compute"]["image"] = "localhost:5000/nowhere:1"


def with_claim(manifest: dict[str, Any]) -> None:
    manifest["spec"]["data"]["datasets"] = [{"name": "chats", "uri": "pvc://nowhere/chats.jsonl"}]


def with_secret(manifest: dict[str, Any]) -> None:
    source = {"secretKeyRef": {"name": "nowhere", "key": "token"}}
    manifest["spec"]["compute"]["env"] = [{"name": "HF_TOKEN", "valueFrom": source}]


def with_config_map(manifest: dict[str, Any]) -> None:
    manifest["spec"]["data"]["datasets"] = [{"name": "few", "uri": "configMap://nowhere/few.jsonl"}]


def with_node(manifest: dict[str, Any]) -> None:
    manifest["spec"]["compute"]["nodeSelector"] = {"sftjob.dev/test": "nowhere"}


def with_priority(manifest: dict[str, Any]) -> None:
    manifest["spec"]["compute"]["priorityClassName"] = "nowhere"


def label_a_node(room: Room) -> None:
    room.cluster.kubectl("label", "node", room.cluster.nodes[0], "sftjob.dev/test=nowhere")


def named_nowhere(kind: str, api: str = "v1", **content: Any) -> Callable[[Room], None]:
    return lambda room: room.apply({"apiVersion": api, "kind": kind, "metadata": {"name": "nowhere"}, **content})


@pytest.mark.parametrize(
    ("break_", "reason", "parts_of_message", "mend"),
    [
        (
            with_image,
            "ImagePullFailed",
            ("spec.compute.image: localhost:5000/nowhere:1 can't be pulled", "name an image"),
            None,
        ),
        (
            with_claim,
            "ClaimMissing",
            ("spec.data.datasets[0].uri: there is no PersistentVolumeClaim nowhere", "create it"),
            lambda room: room.apply(claim("nowhere")),
        ),
        (
            with_secret,
            "SecretMissing",
            ("spec.compute.env[0].valueFrom.secretKeyRef", "no Secret nowhere with the key token; create it"),
            named_nowhere("Secret", stringData={"token": "x"}),
        ),
        (
            with_config_map,
            "ConfigMapMissing",
            ("spec.data.datasets[0].uri", "create the ConfigMap nowhere with the keys few.jsonl"),
            named_nowhere("ConfigMap", data={"few.jsonl": ""}),
        ),
        pytest.param(
            with_node,
            "Unschedulable",
            (
                "spec.compute (nodes, resources, nodeSelector, tolerations): no node can take the pod",
                "affinity/selector",
            ),
            label_a_node,
            marks=pytest.mark.full,
        ),
        pytest.param(
            with_priority,
            "PodRefused",
            ("spec.compute.priorityClassName: there is no such PriorityClass; create it", "nowhere"),
            named_nowhere("PriorityClass", "scheduling.k8s.io/v1", value=1),
            marks=pytest.mark.full,
        ),
    ],
)
def test_what_keeps_a_job_from_starting_is_told_with_what_to_change_and_over_once_it_is_there(
    starting: Room, break_: Any, reason: str, parts_of_message: tuple[str, str], mend: Callable[[Room], None] | None
) -> None:
    manifest, name = small_job(compute={"nodes": 1, "processesPerNode": 1}), reason.lower()
    manifest["metadata"]["name"] = name
    manifest["spec"]["output"] = [{"uri": f"pvc://results/{name}/model"}]
    break_(manifest)
    starting.apply(manifest)
    began = time.monotonic()
    stalled = starting.until(lambda: starting.condition("Stalled", name))
    print(f"{reason} after {time.monotonic() - began:.0f} s")
    assert stalled["reason"] == reason
    for part in parts_of_message:
        assert part in stalled["message"]
    assert starting.status(name)["phase"] == "Starting"
    starting.until(lambda: reason in starting.kubectl("describe", "sftjob", name))
    if mend is not None:
        mend(starting)
        mended = time.monotonic()
        # What is in the claim and the ConfigMap is no data: such a job starts and fails.
        starting.until(lambda: starting.status(name)["phase"] != "Starting")
        print(f"starts {time.monotonic() - mended:.0f} s after it was mended")
        assert starting.condition("Stalled", name).get("reason") != reason
        assert "NotStarted" not in reasons(starting.status(name))
    starting.kubectl("delete", "sftjob", name)


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "spec", "parts_of_message"),
    [
        ("ResourceQuota", {"hard": {"pods": "0"}}, ("is used up; raise it", "exceeded quota: limit")),
        (
            "ResourceQuota",
            {"hard": {"limits.cpu": "4"}},
            ("name it in spec.compute.resources", "must specify limits.cpu"),
        ),
        (
            "LimitRange",
            {"limits": [{"type": "Container", "min": {"cpu": "3"}}]},
            ("change spec.compute.resources to what it allows", "minimum cpu usage per Container is 3"),
        ),
    ],
    ids=["used up", "unspecified", "limits"],
)
def test_what_the_namespace_refuses_is_told_and_the_job_starts_by_itself_once_it_may(
    own: Room, kind: str, spec: dict[str, Any], parts_of_message: tuple[str, str]
) -> None:
    own.start_operator()
    own.apply({"apiVersion": "v1", "kind": kind, "metadata": {"name": "limit"}, "spec": spec})
    # Of a quota it is known only once it was counted that nothing uses it.
    own.until(lambda: kind == "LimitRange" or "used" in own.get("resourcequota", "limit").get("status", {}))
    manifest = small_job()
    if kind == "LimitRange":
        manifest["spec"]["compute"]["resources"] = {"requests": {"cpu": "10m"}, "limits": {"cpu": "2"}}
    own.apply(manifest)
    began = time.monotonic()
    stalled = own.until(lambda: own.condition("Stalled"))
    print(f"{kind} told after {time.monotonic() - began:.0f} s")
    assert stalled["reason"] == "PodRefused"
    for part in parts_of_message:
        assert part in stalled["message"]
    # Meanwhile the controller's own pauses grow.
    time.sleep(60)
    own.kubectl("delete", kind, "limit")
    mended = time.monotonic()
    own.until(lambda: own.status()["phase"] == "Running")
    print(f"runs {time.monotonic() - mended:.0f} s after it was mended")
    # One of its two pods may run before the other is there.
    own.until(lambda: own.condition("Stalled") == {})
    assert reasons(own.until_phase("Succeeded")) == ["Succeeded"]


@pytest.mark.full
def test_labels_that_are_taken_from_an_attempt_without_pods_are_put_back(own: Room) -> None:
    own.start_operator()
    own.apply(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "limit"}, "spec": {"hard": {"pods": "0"}}}
    )
    own.until(lambda: "used" in own.get("resourcequota", "limit").get("status", {}))
    own.apply(small_job())
    own.until(lambda: own.condition("Stalled"))
    (before,) = own.items("pytorchjobs")
    labels = before["metadata"]["labels"]
    own.kubectl("label", "pytorchjob", before["metadata"]["name"], *(f"{name}-" for name in labels))
    own.until(lambda: own.items("pytorchjobs")[0]["metadata"].get("labels") == labels)
    own.kubectl("delete", "resourcequota", "limit")
    assert reasons(own.until_phase("Succeeded")) == ["Succeeded"]
    (after,) = own.items("pytorchjobs")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


@pytest.mark.full
def test_a_job_lets_go_of_what_does_not_start_in_time_and_can_be_deleted_meanwhile(own: Room) -> None:
    own.start_operator()
    manifest = small_job(runPolicy={"startDeadlineSeconds": 10, "disruptionRetries": 1})
    with_image(manifest)
    own.apply(manifest)
    status = own.until_phase("Failed")
    assert reasons(status) == ["NotStarted", "NotStarted"]
    assert "spec.runPolicy.startDeadlineSeconds" in status["attempts"]["history"][0]["message"]
    assert own.condition("Failed")["reason"] == "DisruptionRetriesExhausted"
    own.until(lambda: own.items("pods") == [])

    manifest["metadata"]["name"] = "another"
    own.apply(manifest)
    own.until_phase("Restarting", name="another")
    own.kubectl("delete", "sftjob", "another", "small")
    own.until(lambda: own.kubectl("get", "sftjobs,pytorchjobs,pods,services", "--output=name") == "")


def test_a_job_waits_for_pytorchjobs_and_starts_when_they_are_installed(own: Room) -> None:
    definition = own.cluster.get("crd", "pytorchjobs.kubeflow.org")
    own.cluster.kubectl("delete", "crd", "pytorchjobs.kubeflow.org")
    try:
        own.start_operator()
        own.apply(small_job())
        stalled = own.until(lambda: own.condition("Stalled"))
        assert stalled["reason"] == "PyTorchJobsMissing"
        assert "install Kubeflow's training-operator" in stalled["message"]
    finally:
        metadata = {"name": "pytorchjobs.kubeflow.org", "annotations": definition["metadata"].get("annotations", {})}
        again = {"apiVersion": definition["apiVersion"], "kind": definition["kind"], "spec": definition["spec"]}
        own.cluster.kubectl("create", "--filename=-", stdin=json.dumps(again | {"metadata": metadata}))
    own.until_phase("Running")
    assert not own.condition("Stalled")


@pytest.mark.full
def test_a_service_account_that_is_missing_is_told_and_the_job_starts_once_it_is_there(own: Room) -> None:
    own.start_operator("--trainer-service-account", "trainer")
    own.apply(small_job())
    stalled = own.until(lambda: own.condition("Stalled"))
    assert stalled["reason"] == "PodRefused"
    assert "lacks the service account of trainer pods; create it" in stalled["message"]
    assert 'serviceaccount "trainer" not found' in stalled["message"]
    own.kubectl("create", "serviceaccount", "trainer")
    own.until_phase("Running")
    own.until(lambda: own.condition("Stalled") == {})


@pytest.mark.full
def test_a_volume_that_can_t_be_mounted_is_told_and_the_job_starts_once_it_can(own: Room) -> None:
    # Where nodes see it, whatever they are made of.
    name = f"{own.namespace}-later"
    folder = own.claim_folder("inputs").parent / name
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"},
        "storageClassName": "by-hand",
        "local": {"path": str(folder)},
        "nodeAffinity": {
            "required": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "Exists"}]}]
            }
        },
    }
    own.cluster.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})
    try:
        later = claim("later")
        later["spec"] |= {"storageClassName": "by-hand", "volumeName": name}
        own.apply(later)
        own.start_operator()
        manifest = small_job(compute={"nodes": 1, "processesPerNode": 2})
        manifest["spec"]["data"]["datasets"] = [{"name": "chats", "uri": "pvc://later/chats.jsonl"}]
        own.apply(manifest)
        stalled = own.until(lambda: own.condition("Stalled"))
        assert stalled["reason"] == "VolumeNotMounted"
        assert "a volume can't be mounted; look at its claim and its storage" in stalled["message"]
        assert str(folder) in stalled["message"]
        folder.mkdir()
        shutil.copy(own.claim_folder("inputs") / "chats.jsonl", folder)
        status = own.until_phase("Succeeded")
        assert reasons(status) == ["Succeeded"]
        assert own.condition("Stalled") == {}
    finally:
        own.cluster.kubectl("delete", "persistentvolume", name, "--wait=false")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.full
def test_a_training_operator_that_is_down_is_told_and_the_job_starts_once_it_is_back(own: Room) -> None:
    """By its webhook, which nobody answers; and where that has been taken away, by its silence."""
    training_operator = TrainingOperator(
        Client(own.cluster.folder / "bin" / "kubectl", kubeconfig=own.cluster.folder / "kubeconfig")
    )
    try:
        training_operator.stop()
        own.start_operator()
        own.apply(small_job())
        refused = own.until(lambda: own.condition("Stalled"))
        assert refused["reason"] == "AttemptRefused"
        assert "look whether its service training-operator has pods that run" in refused["message"]
        assert "kubectl get pods --namespace kubeflow" in refused["message"]
        training_operator.pass_over_webhook(own.namespace)
        own.until(lambda: own.items("pytorchjobs"))
        began = time.monotonic()
        silent = own.until(
            lambda: own.condition("Stalled").get("reason") == "ControllerSilent" and own.condition("Stalled")
        )
        print(f"told after {time.monotonic() - began:.0f} s")
        assert "check that Kubeflow's training-operator runs: kubectl get pods" in silent["message"]
    finally:
        training_operator.put_back()
    own.until_phase("Running")
    # One of its two pods may run before the other is there.
    own.until(lambda: own.condition("Stalled") == {})


@pytest.mark.full
def test_somebody_else_s_pytorchjob_of_the_same_name_is_told_left_alone_and_waited_for(own: Room) -> None:
    """It appears between the job's look and its own creation, and waits for nothing itself."""

    def create() -> None:
        name = attempt_name("small", own.get("sftjob", "small")["metadata"]["uid"], 1)
        container = {"name": "pytorch", "image": Cluster.image}
        worker = {"replicas": 1, "template": {"spec": {"containers": [container]}}}
        spec = {"runPolicy": {"suspend": True}, "pytorchReplicaSpecs": {"Worker": worker}}
        own.apply({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name}, "spec": spec})

    created = own.proxy.at("POST", r"/pytorchjobs$", when="before", do=create)
    own.start_operator()
    own.apply(small_job())
    own.until(created.over.is_set)
    (theirs,) = own.items("pytorchjobs")
    name = theirs["metadata"]["name"]
    stalled = own.until(lambda: own.condition("Stalled"))
    assert stalled["reason"] == "NameConflict"
    assert f"the PyTorchJob {name} exists and is not this job's; delete it" in stalled["message"]
    tries = len(own.proxy.writes)
    # It tries again and again, and does nothing else about it.
    own.until(lambda: sum(call.path.endswith("/pytorchjobs") for call in own.proxy.writes[tries:]) >= 2)
    left = own.get("pytorchjob", name)
    assert left["spec"] == theirs["spec"]
    assert {key: left["metadata"].get(key) for key in ("uid", "labels", "ownerReferences", "deletionTimestamp")} == {
        "uid": theirs["metadata"]["uid"],
        "labels": None,
        "ownerReferences": None,
        "deletionTimestamp": None,
    }
    own.kubectl("delete", "pytorchjob", name)
    assert reasons(own.until_phase("Succeeded")) == ["Succeeded"]
    assert own.condition("Stalled") == {}
