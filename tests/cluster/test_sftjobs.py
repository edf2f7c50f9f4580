"""SFTJobs on the real cluster: from `kubectl apply` to the end, through every interruption."""

import itertools
import json
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from api_proxy import kill
from e2e.held_out import assistant_loss
from e2e.local_run import LocalRun, assert_bit_equal, fingerprint
from operator_room import Room, define, reasons, small_job
from real_cluster import PATIENCE_SECONDS, Cluster, needs_root_on_linux, run_tool
from transformers import AutoModelForCausalLM

from cluster.parts import parts, pid_of
from cluster.place import cache_folder, cluster_folder
from examples.tickets import tickets

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]


def test_a_pretrained_model_is_fine_tuned_on_two_nodes_and_its_progress_can_be_watched(
    own: Room, smollm2: Path, tmp_path: Path
) -> None:
    inputs = own.claim_folder("inputs")
    shutil.copytree(smollm2, inputs / "model")
    rows = tickets(120, seed=5)
    (inputs / "trained.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:100]))
    manifest = {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {"name": "tuned"},
        "spec": {
            "model": {"loadFrom": {"uri": "pvc://inputs/model"}},
            "data": {
                "datasets": [{"name": "tickets", "uri": "pvc://inputs/trained.jsonl"}],
                "packing": {"maxLength": 256},
            },
            "training": {"totalStep": 12, "globalBatchSize": 2, "optimizer": {"lr": 1e-4}},
            "output": [{"uri": "pvc://results/model"}],
            "compute": {"nodes": 2, "processesPerNode": 1},
        },
    }
    own.start_operator()
    command = [str(own.cluster.folder / "bin" / "kubectl"), f"--kubeconfig={own.cluster.folder / 'kubeconfig'}"]
    seen = tmp_path / "watched"
    own.apply(manifest)
    with (
        seen.open("w") as file,
        subprocess.Popen([*command, "-n", own.namespace, "get", "sft", "--watch"], stdout=file) as watcher,
    ):
        status = own.until_phase("Succeeded", name="tuned")
        pods = own.items("pods")
        watcher.terminate()

    assert reasons(status) == ["Succeeded"]
    assert status["artifacts"][0]["uri"] == "pvc://results/model"
    for pod in pods:
        volumes = {kind for volume in pod["spec"]["volumes"] for kind in volume if kind != "name"}
        assert volumes == {"persistentVolumeClaim", "emptyDir"}, "a token is mounted"
    header, *lines = seen.read_text().splitlines()
    assert header.split() == ["NAME", "PHASE", "PROGRESS", "LOSS", "TOKENS/S", "ETA", "SAVED", "ATTEMPT", "AGE"]
    stages = [line.split()[2] for line in lines if line.split()[1:2] == ["Running"]]
    before_training = stages[: stages.index("Training")]
    assert any(stage in ("PreparingData", "Starting", "LoadingModel") for stage in before_training), lines
    steps = [int(line.split()[3].split("/")[0]) for line in lines if "Training" in line and "/" in line]
    rising = [after for before, after in itertools.pairwise([0, *steps]) if after > before]
    assert len(rising) >= 3, lines

    exported = own.claim_folder("results") / "model"
    _, info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}
    before, after = (assistant_loss(folder, rows[100:]) for folder in (smollm2, exported))
    print(f"held-out assistant loss {before:.3f} -> {after:.3f}")
    assert after <= before - 0.3


def test_a_killed_rank_is_told_with_its_place_and_the_next_attempt_ends_bit_equal(
    own: Room, undisturbed: LocalRun
) -> None:
    own.start_operator()
    own.apply(small_job())
    own.until_step(5)
    pod = own.signal_ranks(1, signal.SIGKILL, attempt=1)
    node = own.get("pod", pod)["spec"]["nodeName"]
    status = own.until_phase("Succeeded")
    last, first = status["attempts"]["history"]
    assert (first["reason"], first["rank"], first["signal"], first["exitCode"]) == ("RankKilled", 1, signal.SIGKILL, 70)
    assert (first["pod"], first["node"]) == (pod, node)
    assert first["logTail"]
    assert last["resumedFrom"] == first["savedStep"] >= 4
    assert (status["attempts"]["failures"], status["attempts"]["disruptions"]) == (1, 0)
    print("recovery: ", last["recovery"])
    assert {"detectSeconds", "cleanUpSeconds", "startSeconds"} <= last["recovery"].keys()
    assert [item["metadata"]["labels"]["sftjob.dev/attempt"] for item in own.items("pytorchjobs")] == ["2"]
    assert_bit_equal(own.run(), undisturbed)
    story = own.kubectl("describe", "sftjob", "small")
    for event in ("AttemptStarted", "Running", "CheckpointSaved", "RankKilled", "attempt 2 started", "Succeeded"):
        assert event in story


def worker(room: Room, attempt: int) -> dict[str, Any]:
    """Of the attempt's PyTorchJob, once it is there."""

    def found() -> dict[str, Any] | None:
        jobs = {one["metadata"]["labels"]["sftjob.dev/attempt"]: one for one in room.items("pytorchjobs")}
        return jobs[str(attempt)]["spec"]["pytorchReplicaSpecs"]["Worker"] if str(attempt) in jobs else None

    worker: dict[str, Any] = room.until(found)
    return worker


@pytest.mark.full
def test_a_job_that_asks_for_gpus_is_prepared_where_there_are_none(own: Room) -> None:
    own.start_operator()
    firsts: list[dict[str, Any]] = []
    # Until the second one is there, the first one stays.
    own.proxy.at("POST", r"/pytorchjobs$", when="before", nth=2, do=lambda: firsts.append(worker(own, 1)))
    gpus = {"limits": {"nvidia.com/gpu": 1}}
    own.apply(small_job(compute={"nodes": 2, "processesPerNode": 1, "resources": gpus}))
    second = worker(own, 2)
    (first,) = firsts
    assert first["replicas"] == 1
    assert first["template"]["spec"]["containers"][0]["resources"] == {}
    assert second["replicas"] == 2
    assert second["template"]["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    status = own.status()
    assert [(one["kind"], one["reason"]) for one in status["attempts"]["history"]] == [("Preflight", "Prepared")]
    assert (status["attempts"]["failures"], status["attempts"]["disruptions"]) == (0, 0)
    assert status["data"]["samples"] == 60
    assert own.until(lambda: own.condition("Stalled"))["reason"] == "Unschedulable"
    story = own.kubectl("describe", "sftjob", "small")
    for told in (
        "attempt 1 (pre-flight on one worker, without accelerators) started",
        "attempt 1 found storage, model and data ready",
        "attempt 2 started",
    ):
        assert told in story


@pytest.mark.full
def test_an_operator_killed_after_a_pre_flight_goes_on_with_the_attempt_that_trains(
    own: Room, undisturbed: LocalRun
) -> None:
    operator = own.start_operator()
    announced = own.proxy.at("POST", r"/pytorchjobs$", when="before", nth=2, do=lambda: kill(operator.process))
    own.apply(small_job(runPolicy={"preflight": "always"}))
    own.until(announced.over.is_set)
    assert own.status()["attempts"]["current"] == 2
    own.start_operator()
    assert reasons(own.until_phase("Succeeded")) == ["Prepared", "Succeeded"]
    assert_bit_equal(own.run(), undisturbed)


@pytest.mark.full
def test_a_script_from_a_config_map_goes_on_after_a_pod_is_deleted_and_ends_bit_equal_to_the_job_without_it(
    own: Room, undisturbed: LocalRun
) -> None:
    own.start_operator()
    script = (ROOT / "tests" / "e2e" / "small_script.py").read_text()
    own.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scripts"}, "data": {"own.py": script}})
    places = ["pvc://inputs/tokenizer", "pvc://inputs/chats.jsonl"]
    without = small_job()
    kept = {name: without["spec"][name] for name in ("checkpoint", "output", "compute", "runPolicy")}
    own.apply(without | {"spec": kept | {"script": {"uri": "configMap://scripts/own.py", "args": places}}})
    own.until_step(3)
    own.kubectl("delete", "pod", own.pod_of(1), "--wait=false")
    status = own.until_phase("Succeeded")
    assert reasons(status) == ["Preempted", "Succeeded"]
    last, first = status["attempts"]["history"]
    assert last["resumedFrom"] == first["savedStep"] == first["lastStep"]
    assert status["artifacts"][0]["uri"] == "pvc://results/model"
    assert_bit_equal(own.run(), undisturbed)


def test_an_operator_killed_around_a_creation_and_in_mid_run_makes_one_attempt(
    own: Room, undisturbed: LocalRun
) -> None:
    operator = own.start_operator()
    announced = own.proxy.at("POST", r"/pytorchjobs$", when="before", do=lambda: kill(operator.process))
    own.apply(small_job())
    own.until(announced.over.is_set)
    assert own.status()["attempts"]["current"] == 1
    assert own.items("pytorchjobs") == []

    operator = own.start_operator()
    created = own.proxy.at("POST", r"/pytorchjobs$", when="after", do=lambda: kill(operator.process))
    own.until(created.over.is_set)
    assert len(own.items("pytorchjobs")) == 1

    operator = own.start_operator()
    own.until_step(3)
    operator.kill()
    own.start_operator()
    status = own.until_phase("Succeeded")
    assert reasons(status) == ["Succeeded"]
    forwarded = [c for c in own.proxy.writes if c.path.endswith("/pytorchjobs") and c.forwarded and c.status == 201]
    assert len(forwarded) == 1
    assert_bit_equal(own.run(), undisturbed)


@pytest.mark.full
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("method", "path"), [("PATCH", r"/sftjobs/small/status$"), ("DELETE", r"/pytorchjobs/")])
def test_an_operator_killed_around_what_it_writes_of_an_end_makes_one_further_attempt(
    own: Room, undisturbed: LocalRun, method: str, path: str, when: Literal["before", "after"]
) -> None:
    operator = own.start_operator()
    own.apply(small_job())
    own.until_step(3)
    # Steps are told in writes of the status too: none of the end is missed, and the first one may be of a step.
    written = own.proxy.at(method, path, when=when, do=lambda: kill(operator.process))
    own.signal_ranks(1, signal.SIGKILL, attempt=1)
    own.until(written.over.is_set)
    own.start_operator()
    status = own.until_phase("Succeeded")
    assert reasons(status) == ["RankKilled", "Succeeded"]
    # Of which kind it is depends on what was left to see of it when the operator was back.
    assert status["attempts"]["failures"] + status["attempts"]["disruptions"] == 1
    forwarded = [c for c in own.proxy.writes if c.path.endswith("/pytorchjobs") and c.forwarded and c.status == 201]
    assert len(forwarded) == 2
    assert_bit_equal(own.run(), undisturbed)


@pytest.mark.parametrize("old", [pytest.param("f8f3a62", marks=pytest.mark.full), "3ef866a"])
def test_a_newer_definition_and_operator_take_a_running_job_over_as_it_is(
    own: Room, undisturbed: LocalRun, tmp_path: Path, old: str
) -> None:
    """From versions before and after deadlines, queues, scripts and the parts of a recovery became known."""
    sources = tmp_path / "old"
    archive = ["git", "archive", f"--output={sources}.tar", old]
    found = subprocess.run(archive, cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip(f"needs the project's history: {found.stderr.strip()}")
    shutil.unpack_archive(f"{sources}.tar", sources, filter="data")
    try:
        define(own.cluster, sources)
        operator = own.start_operator(sources=sources)
        own.apply(small_job())
        own.until_step(3)
        own.until(lambda: own.status()["phase"] == "Running")
        pods = {pod["metadata"]["uid"] for pod in own.items("pods")}
        operator.kill()
    finally:
        define(own.cluster)
    own.start_operator()
    status = own.until_phase("Succeeded")
    assert reasons(status) == ["Succeeded"]
    assert {pod["metadata"]["uid"] for pod in own.items("pods")} == pods
    assert status["artifacts"][0]["uri"] == "pvc://results/model"
    assert_bit_equal(own.run(), undisturbed)


def test_a_job_deleted_in_mid_run_leaves_nothing_though_no_operator_is_there(own: Room) -> None:
    operator = own.start_operator()
    own.apply(small_job())
    own.until_step(1)
    operator.kill()
    own.kubectl("delete", "sftjob", "small")
    own.until(lambda: own.kubectl("get", "sftjobs,pytorchjobs,pods,services", "--output=name") == "")


def test_a_pod_deleted_with_grace_saves_and_its_job_resumes_where_it_was(own: Room, undisturbed: LocalRun) -> None:
    own.start_operator()
    own.apply(small_job())
    own.until_step(3)
    own.kubectl("delete", "pod", own.pod_of(1), "--wait=false")
    status = own.until_phase("Succeeded")
    last, first = status["attempts"]["history"]
    assert (first["reason"], first["exitCode"]) == ("Preempted", 75)
    assert last["resumedFrom"] == first["savedStep"] == first["lastStep"] >= 3
    assert (status["attempts"]["failures"], status["attempts"]["disruptions"]) == (0, 1)
    assert_bit_equal(own.run(), undisturbed)


@pytest.mark.full
def test_an_operator_that_slept_through_two_attempts_creates_one_that_leaves_at_the_fence(
    own: Room, undisturbed: LocalRun
) -> None:
    first, wake_up = own.start_operator(), threading.Event()

    def sleep() -> None:
        first.pause()
        wake_up.wait()

    own.apply(small_job())
    own.until_step(2)
    late = own.proxy.at("POST", r"/pytorchjobs$", when="before", do=sleep)
    own.signal_ranks(0, signal.SIGKILL, attempt=1)
    own.until(late.reached.is_set)
    second = own.start_operator()
    own.until_step(5, attempt=2)
    own.signal_ranks(1, signal.SIGKILL, attempt=2)
    own.until_step(6, attempt=3)
    # The second one would delete the late attempt at once: here the fence alone has to stop it.
    second.pause()
    wake_up.set()
    own.until(late.over.is_set)

    def fenced() -> list[dict[str, Any]]:
        pods = json.loads(own.kubectl("get", "pods", "--selector=sftjob.dev/attempt=2", "--output=json"))["items"]
        ended = [status for pod in pods for status in pod["status"].get("containerStatuses", [])]
        return [json.loads(e["state"]["terminated"]["message"]) for e in ended if "terminated" in e["state"]]

    # The controller takes the pods away that still start when the first has ended.
    outcomes = own.until(fenced)
    assert {(outcome["reason"], outcome["exitCode"]) for outcome in outcomes} == {("Superseded", 76)}
    first.go_on()
    second.go_on()
    status = own.until_phase("Succeeded")
    assert reasons(status) == ["RankKilled", "RankKilled", "Succeeded"]
    assert_bit_equal(own.run(), undisturbed)


def test_broken_data_ends_the_job_with_file_line_and_remedy(own: Room) -> None:
    (own.claim_folder("inputs") / "chats.jsonl").write_text('{"messages": [{"role": "user"}]}\n')
    own.start_operator()
    own.apply(small_job())
    status = own.until_phase("Failed")
    assert reasons(status) == ["InvalidData"]
    failed = own.condition("Failed")
    assert failed["reason"] == "InvalidData"
    assert "chats.jsonl:1" in failed["message"]
    assert own.condition("Stalled")["reason"] == "InvalidData"


@pytest.mark.full
def test_a_running_job_takes_over_a_limit_that_is_edited_and_leaves_its_checkpoint(own: Room) -> None:
    own.start_operator()
    own.apply(small_job())
    own.until_step(3)
    own.until_phase("Running")
    own.patch(activeDeadlineSeconds=1)
    status = own.until_phase("Failed")
    assert reasons(status) == ["DeadlineExceeded"]
    last = status["attempts"]["history"][0]
    assert last["savedStep"] == last["lastStep"] >= 3
    assert last["lostSteps"] == 0
    assert own.condition("Failed")["reason"] == "DeadlineExceeded"


def test_a_failed_job_goes_on_by_annotation_and_is_deleted_once_its_time_is_over(own: Room) -> None:
    data = own.claim_folder("inputs") / "chats.jsonl"
    whole = data.read_text()
    data.write_text("not JSON\n")
    own.start_operator()
    own.apply(small_job())
    assert reasons(own.until_phase("Failed")) == ["InvalidData"]
    data.write_text(whole)
    own.kubectl("annotate", "sftjob", "small", "sftjob.dev/retry=1")
    own.until(lambda: own.status()["phase"] != "Failed")
    status = own.until_phase("Succeeded")
    assert reasons(status) == ["InvalidData", "Succeeded"]
    assert status["retryHandled"] == "1"
    assert own.condition("Failed") == {}

    own.patch(ttlSecondsAfterFinished=0)
    own.until(lambda: not own.items("sftjobs") and not own.items("pytorchjobs"))


@needs_root_on_linux
@pytest.mark.full
def test_training_goes_on_while_the_api_server_is_away_and_the_status_is_right_after_it(own: Room) -> None:
    manifest = small_job(training={"totalStep": 100_000, "globalBatchSize": 4}, checkpoint={"everySteps": 50_000})
    own.start_operator()
    own.apply(manifest)
    own.until_step(3)
    metrics = own.run().storage / "attempts" / "1" / "metrics.jsonl"

    def last_step() -> int:
        return int(json.loads(metrics.read_text().splitlines()[-2])["step"])

    every = {part.name: part for part in parts(cluster_folder(cache_folder()), cache_folder(), nodes=2)}
    pid = pid_of(every["kube-apiserver"])
    subprocess.run(["kill", "-9", str(pid)], check=True)
    try:
        before, outage = last_step(), time.monotonic()
        while time.monotonic() - outage < 60:
            time.sleep(1)
        assert last_step() > before
    finally:
        mended = run_tool("up")
    assert mended.returncode == 0, mended.stdout
    returned, step = time.monotonic(), last_step()
    own.until(lambda: own.status().get("progress", {}).get("step", 0) >= step)
    print(f"the status was right {time.monotonic() - returned:.0f} s after the API server's return")
    status = own.status()
    assert (status["phase"], status["attempts"]["current"], status["attempts"].get("history", [])) == ("Running", 1, [])
    own.kubectl("delete", "sftjob", "small")


def test_the_same_job_applied_again_on_the_same_storage_is_refused_and_overwrites_nothing(finished: Room) -> None:
    uid = finished.get("sftjob", "small")["metadata"]["uid"]
    results = finished.claim_folder("results")
    before = fingerprint(results)
    finished.kubectl("delete", "sftjob", "small")
    finished.apply(small_job())
    status = finished.until_phase("Failed")
    assert reasons(status) == ["StorageRefused"]
    message = finished.condition("Failed")["message"]
    assert f"belongs to the job {finished.namespace}/small with uid {uid}" in message
    assert "name another folder, or delete" in message
    assert fingerprint(results) == before


def test_a_suspended_job_saves_and_goes_on_when_it_is_wanted_again(own: Room, undisturbed: LocalRun) -> None:
    own.start_operator()
    own.apply(small_job())
    own.until_step(3)
    own.patch(suspend=True)
    status = own.until_phase("Suspended")
    own.until(lambda: own.items("pods") == [])
    (first,) = status["attempts"]["history"]
    assert (first["reason"], first["savedStep"]) == ("Preempted", first["lastStep"])
    own.patch(suspend=False)
    status = own.until_phase("Succeeded")
    assert status["attempts"]["history"][0]["resumedFrom"] == first["savedStep"]
    assert (status["attempts"]["failures"], status["attempts"]["disruptions"]) == (0, 0)
    assert_bit_equal(own.run(), undisturbed)


CHART = (
    *("sft-operator", str(ROOT / "charts" / "sft-operator"), "--wait", "--timeout=10m"),
    "--set=image=localhost:5000/sft-operator:dev",
    f"--set=trainer.image={Cluster.image}",
)


def helm(own: Room, namespace: str, *arguments: str) -> None:
    command = [str(own.cluster.folder / "bin" / "helm"), f"--kubeconfig={own.cluster.folder / 'kubeconfig'}"]
    command += [f"--namespace={namespace}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr + own.cluster.kubectl("describe", "pods", f"--namespace={namespace}")


def told(own: Room, namespace: str, path: str) -> str:
    """Of the small job."""
    return own.cluster.kubectl("get", "sftjob", "small", f"--namespace={namespace}", f"--output=jsonpath={{{path}}}")


def test_the_chart_brings_an_operator_for_two_namespaces_that_leaves_nothing_when_it_goes(own: Room) -> None:
    system, watched, other = (f"{own.namespace}-{name}" for name in ("system", "watched", "other"))
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    for namespace in (system, watched, other):
        metadata = {"name": namespace, "labels": restricted}
        own.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    # There are no claims here: such a job starts and gets no further.
    for namespace in (watched, other):
        own.cluster.kubectl("create", f"--namespace={namespace}", "--filename=-", stdin=json.dumps(small_job()))

    try:
        helm(own, system, "install", *CHART, f"--set=watchNamespaces={{{own.namespace},{watched}}}")
        own.apply(small_job())
        # Its progress is asked for on the pod's own address: from outside it goes through the API server.
        own.until(lambda: own.status().get("progress", {}).get("stage"))
        assert reasons(own.until_phase("Succeeded")) == ["Succeeded"]
        own.until(lambda: "ClaimMissing" in told(own, watched, ".status.conditions"))
        assert told(own, other, ".status") == ""
        helm(own, system, "uninstall", "sft-operator", "--wait")
        kinds = "all,serviceaccounts,roles,rolebindings,leases,networkpolicies"
        left = ("get", kinds, f"--namespace={system}", "--output=name")
        own.until(lambda: own.cluster.kubectl(*left) == "serviceaccount/default\n")
        own.kubectl("delete", "sftjob", "small")
        own.until(lambda: own.kubectl("get", "all,roles,rolebindings,networkpolicies", "--output=name") == "")
        roles = ("get", "roles,rolebindings", f"--namespace={watched}", "--output=name")
        assert own.cluster.kubectl(*roles) == ""
    finally:
        own.cluster.kubectl("delete", "namespace", system, watched, other)


@pytest.mark.full
def test_a_team_that_deletes_its_namespace_stops_no_other_and_is_served_again_when_it_is_back(own: Room) -> None:
    system, deleted = f"{own.namespace}-system", f"{own.namespace}-deleted"
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}

    def create(namespace: str) -> None:
        metadata = {"name": namespace, "labels": restricted}
        own.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def readiness() -> str:
        name = own.cluster.kubectl("get", "pods", f"--namespace={system}", "--output=name").strip()
        page = f"{name.removeprefix('pod/')}:8080/proxy/readyz"
        return own.cluster.kubectl("get", "--raw", f"/api/v1/namespaces/{system}/pods/{page}")

    def logs() -> str:
        return own.cluster.kubectl("logs", "deployment/sft-operator", f"--namespace={system}")

    chart = (*CHART, f"--set=watchNamespaces={{{own.namespace},{deleted}}}")
    create(system)
    create(deleted)
    try:
        helm(own, system, "install", *chart)
        assert readiness() == "at work\n"
        own.cluster.kubectl("delete", "namespace", deleted)
        own.until(lambda: f"no jobs are run in {deleted}: " in logs())
        own.apply(small_job())
        assert reasons(own.until_phase("Succeeded")) == ["Succeeded"]
        assert readiness().startswith(f"at work\nno jobs are run in {deleted}: ")
        create(deleted)
        helm(own, system, "upgrade", *chart)
        # There are no claims here: such a job starts and gets no further.
        own.cluster.kubectl("create", f"--namespace={deleted}", "--filename=-", stdin=json.dumps(small_job()))
        own.until(lambda: "ClaimMissing" in told(own, deleted, ".status.conditions"))
        assert readiness() == "at work\n"
    finally:
        own.cluster.kubectl("delete", "namespace", system, deleted, "--ignore-not-found")
