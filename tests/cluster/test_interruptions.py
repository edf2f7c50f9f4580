"""What a cluster does to a running job: nodes that go, pods that have to make room, memory that ends, ranks that stand
still. Each is told by its name, and the job goes on as if nothing had been."""

import json
import re
import signal
import subprocess
from typing import Any

import pytest
from e2e.local_run import LocalRun, assert_bit_equal
from kubernetes.utils.quantity import parse_quantity
from operator_room import Room, reasons, small_job
from real_cluster import Cluster, needs_root_on_linux, pod, run_tool

from cluster.parts import parts, pid_of
from cluster.place import cache_folder, cluster_folder

pytestmark = pytest.mark.cluster

ONE_NODE = {"nodes": 1, "processesPerNode": 2}
TWO_PODS = {"nodes": 2, "processesPerNode": 1}
"""As of the job that nothing disturbed: ranks of one pod share its cores, and round otherwise."""


@pytest.mark.full
def test_a_rank_that_stands_still_is_told_with_its_pod_and_the_stacks_and_the_next_attempt_goes_on(
    own: Room, undisturbed: LocalRun
) -> None:
    own.start_operator()
    own.apply(small_job())
    own.until_phase("Running")
    own.until_step(3)
    stopped = own.signal_ranks(1, signal.SIGSTOP, attempt=1)
    node = own.get("pod", stopped)["spec"]["nodeName"]
    # The limit holds while the rank stands still only: on a slow machine any honest stage takes longer than that.
    own.patch(progressDeadlineSeconds=10)
    own.until(lambda: own.status()["attempts"].get("ending") or own.status()["attempts"].get("history"))
    own.patch(progressDeadlineSeconds=None)
    status = own.until_phase("Succeeded")
    assert reasons(status) == ["Hang", "Succeeded"]
    last, hang = status["attempts"]["history"]
    assert (hang["rank"], hang["pod"], hang["node"]) == (1, stopped, node)
    assert (hang["standstill"]["rank"], hang["standstill"]["state"]) == (1, "T")
    assert hang["message"].startswith("spec.runPolicy.progressDeadlineSeconds: no progress for 10 s in stage ")
    uri = hang["standstill"]["stacks"]
    assert uri == "pvc://results/model.checkpoints/attempts/1/stacks-node-1.txt"
    assert uri in hang["message"]
    stacks = (own.claim_folder("results") / uri.removeprefix("pvc://results/")).read_text()
    assert re.findall(r"^rank (\d+):", stacks, re.MULTILINE) == ["1"]
    assert "/train/loop.py" in stacks
    assert last["resumedFrom"] == hang["savedStep"] >= 2
    assert (status["attempts"]["failures"], status["attempts"]["disruptions"]) == (1, 0)
    assert_bit_equal(own.run(), undisturbed)


@needs_root_on_linux
def test_a_job_whose_node_is_lost_says_so_and_goes_on_where_there_is_one(own: Room, undisturbed: LocalRun) -> None:
    """Without an answer for 40 s a node counts as lost; how long its pods are kept nevertheless, the job may say."""
    stays = node_of_training_operator(own.cluster)
    (goes,) = set(own.cluster.nodes) - {stays}
    lost = [
        {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
        for what in ("unreachable", "not-ready")
    ]
    own.start_operator()
    own.cluster.kubectl("cordon", stays)
    try:
        own.apply(small_job(compute=TWO_PODS | {"tolerations": lost}, runPolicy={"terminationGracePeriodSeconds": 10}))
        own.until_step(3)
    finally:
        own.cluster.kubectl("uncordon", stays)
    pods = {own.pod_of(rank) for rank in (0, 1)}
    assert {own.get("pod", pod)["spec"]["nodeName"] for pod in pods} == {goes}
    every = {part.name: part for part in parts(cluster_folder(cache_folder()), cache_folder(), nodes=2)}
    subprocess.run(["kill", "-9", str(pid_of(every[f"node-{own.cluster.nodes.index(goes) + 1}"]))], check=True)
    try:
        status = own.until_phase("Succeeded")
    finally:
        mended = run_tool("up")
    assert mended.returncode == 0, mended.stdout
    assert reasons(status) == ["NodeLost", "Succeeded"]
    last, gone = status["attempts"]["history"]
    assert gone["pod"] in pods
    assert gone["node"] == goes
    assert gone["message"].startswith(f"{goes} is lost: it did not end its pod")
    assert last["resumedFrom"] >= 2
    assert (status["attempts"]["failures"], status["attempts"]["disruptions"]) == (0, 1)
    assert_bit_equal(own.run(), undisturbed)


def node_of_training_operator(cluster: Cluster) -> str:
    selector = ("--namespace=kubeflow", "--selector=control-plane=kubeflow-training-operator")
    return cluster.kubectl("get", "pods", *selector, "--output=jsonpath={.items[0].spec.nodeName}")


@pytest.mark.full
def test_an_evicted_pod_saves_and_its_job_goes_on_where_it_was(own: Room, undisturbed: LocalRun) -> None:
    """Through the API by which nodes are drained."""
    own.start_operator()
    own.apply(small_job())
    own.until_step(3)
    evicted = own.pod_of(1)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": evicted}}
    path = f"/api/v1/namespaces/{own.namespace}/pods/{evicted}/eviction"
    own.kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(eviction))
    assert_nothing_is_lost(own.until_phase("Succeeded"))
    assert_bit_equal(own.run(), undisturbed)


@pytest.mark.full
def test_a_pod_that_makes_room_for_a_more_important_one_saves_and_goes_on_after_it(
    own: Room, undisturbed: LocalRun
) -> None:
    high, node = f"{own.namespace}-high", own.cluster.nodes[1]
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": high}}
    own.cluster.apply(priority | {"value": 1000})
    # The node has room beside its own pods for the job or for what is urgent, not for both.
    cores = parse_quantity(own.get("node", node)["status"]["allocatable"]["cpu"])
    most, half = ({"requests": {"cpu": f"{(int(1000 * cores) - 800) // pods}m"}} for pods in (1, 2))
    own.start_operator()
    selector = {"kubernetes.io/hostname": node}
    own.apply(small_job(compute=TWO_PODS | {"resources": half, "nodeSelector": selector}))
    own.until_step(3)
    urgent = pod("urgent", ["sleep", "infinity"], node=node)
    urgent["spec"]["priorityClassName"] = high
    urgent["spec"]["containers"][0]["resources"] = most
    own.apply(urgent)
    own.until(lambda: own.status()["attempts"].get("history"))
    own.until(lambda: own.condition("Stalled").get("reason") == "Unschedulable")
    own.until(lambda: own.get("pod", "urgent")["status"]["phase"] == "Running")
    own.kubectl("delete", "pod", "urgent")
    assert_nothing_is_lost(own.until_phase("Succeeded"))
    assert_bit_equal(own.run(), undisturbed)


def assert_nothing_is_lost(status: dict[str, Any]) -> None:
    """Preempted once, after a save of the last step."""
    assert reasons(status) == ["Preempted", "Succeeded"]
    last, first = status["attempts"]["history"]
    assert last["resumedFrom"] == first["savedStep"] == first["lastStep"] >= 3
    assert first["lostSteps"] == 0
    assert (status["attempts"]["failures"], status["attempts"]["disruptions"]) == (0, 1)


@pytest.mark.full
def test_too_little_memory_is_told_with_the_limit_that_was_not_enough(own: Room) -> None:
    """An interpreter with torch takes more than that."""
    own.start_operator()
    limits = {"requests": {"memory": "100Mi"}, "limits": {"memory": "300Mi"}}
    own.apply(small_job(compute=ONE_NODE | {"resources": limits}, runPolicy={"retries": 1}))
    status = own.until_phase("Failed")
    assert own.condition("Failed")["reason"] == "RetriesExhausted"
    for record in status["attempts"]["history"]:
        # With the launcher itself, which the kernel may take too, the stage is lost.
        assert record["reason"] in ("LoadOutOfMemory", "OutOfMemory"), record
        assert record["message"].startswith(
            "spec.compute.resources.limits.memory: 300Mi of memory was not enough; raise it"
        )
    assert status["attempts"]["failures"] == 2


@pytest.mark.full
def test_a_job_of_which_three_attempts_saved_nothing_ends_and_says_so(own: Room) -> None:
    own.start_operator()
    own.apply(small_job(compute=ONE_NODE, training={"totalStep": 1000}, checkpoint={"everySteps": 500}))
    for attempt in (1, 2, 3):
        own.until_step(1, attempt=attempt)
        own.signal_ranks(0, signal.SIGKILL, attempt=attempt)
    status = own.until_phase("Failed")
    assert reasons(status) == ["RankKilled"] * 3
    failed = own.condition("Failed")
    assert failed["reason"] == "NoProgress"
    assert failed["message"].startswith("3 attempts in a row without a newer checkpoint; RankKilled: ")
    own.until(lambda: all(one["status"]["phase"] != "Running" for one in own.items("pods")))
