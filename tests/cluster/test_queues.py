"""Jobs of one Kueue queue on the real cluster: who waits, who is let go, and who has to make room."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.local_run import LocalRun, assert_bit_equal
from operator_room import Room, room, small_job
from real_cluster import Cluster, run_tool

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
QUEUES = "kueue.x-k8s.io/v1beta2"

_numbers = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def kueue(cluster: Cluster) -> None:
    cluster.kubectl("apply", "--server-side", f"--filename={ROOT / 'crds' / 'sftjobs.sftjob.dev.yaml'}")
    added = run_tool("kueue")
    assert added.returncode == 0, added.stdout


@pytest.fixture
def own(cluster: Cluster, tmp_path: Path, smollm2: Path, chats: Path) -> Iterator[Room]:
    """With a LocalQueue `team-a` whose quota is one job of two nodes, and two priorities."""
    namespace = f"queue-{next(_numbers)}"
    with room(cluster, namespace, tmp_path, model=smollm2, chats=chats) as made:
        quota = {"name": "cpu", "nominalQuota": "200m"}
        flavors = [{"name": namespace, "resources": [quota]}]
        cluster.apply(
            {"apiVersion": QUEUES, "kind": "ResourceFlavor", "metadata": {"name": namespace}, "spec": {}},
            {
                "apiVersion": QUEUES,
                "kind": "ClusterQueue",
                "metadata": {"name": namespace},
                "spec": {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                    "resourceGroups": [{"coveredResources": ["cpu"], "flavors": flavors}],
                    "preemption": {"withinClusterQueue": "LowerPriority"},
                },
            },
            *(
                {
                    "apiVersion": "scheduling.k8s.io/v1",
                    "kind": "PriorityClass",
                    "metadata": {"name": f"{namespace}-{name}"},
                    "value": value,
                    # Of the queue alone: the cluster's own scheduler takes nothing away.
                    "preemptionPolicy": "Never",
                }
                for name, value in (("low", 1), ("high", 2))
            ),
        )
        made.apply(
            {
                "apiVersion": QUEUES,
                "kind": "LocalQueue",
                "metadata": {"name": "team-a"},
                "spec": {"clusterQueue": namespace},
            }
        )
        made.start_operator()
        yield made


def queued_job(own: Room, name: str, *, priority: str = "low") -> dict[str, Any]:
    compute = {
        "nodes": 2,
        "processesPerNode": 1,
        "resources": {"requests": {"cpu": "100m"}},
        "priorityClassName": f"{own.namespace}-{priority}",
    }
    manifest = small_job(compute=compute)
    manifest["metadata"] = {"name": name}
    manifest["spec"] |= {"queue": {"name": "team-a"}, "output": [{"uri": f"pvc://results/{name}/model"}]}
    return manifest


def word_of_queue(own: Room, name: str) -> str:
    condition = own.condition("Reconciling", name)
    return condition["message"] if condition.get("reason") == "Queued" else ""


def started_at(own: Room, name: str) -> str:
    return str(own.status(name)["attempts"]["history"][0]["startedAt"])


def test_the_second_of_two_jobs_waits_with_the_queue_s_own_words_and_runs_after_the_first(own: Room) -> None:
    own.apply(queued_job(own, "first"))
    own.until_phase("Running", name="first")
    own.apply(queued_job(own, "second"))
    own.until_phase("Queued", name="second")
    own.until(lambda: "insufficient unused quota for cpu" in word_of_queue(own, "second"))
    assert own.condition("Stalled", "second") == {}

    first = own.until_phase("Succeeded", name="first")
    second = own.until_phase("Succeeded", name="second")
    assert started_at(own, "second") >= first["attempts"]["history"][0]["endedAt"]
    for status in (first, second):
        assert [record["reason"] for record in status["attempts"]["history"]] == ["Succeeded"]


@pytest.mark.full
def test_a_job_that_names_no_queue_waits_in_the_one_called_default(own: Room) -> None:
    """Kueue gives it to whatever names none, and suspends it."""
    default = {"apiVersion": QUEUES, "kind": "LocalQueue", "metadata": {"name": "default"}}
    own.apply(default | {"spec": {"clusterQueue": own.namespace}})
    own.until(lambda: own.get("localqueue", "default").get("status", {}).get("conditions"))
    own.apply(queued_job(own, "first"))
    own.until_phase("Running", name="first")
    unaware = queued_job(own, "unaware")
    del unaware["spec"]["queue"]
    own.apply(unaware)
    own.until_phase("Queued", name="unaware")
    own.until(lambda: "insufficient unused quota for cpu" in word_of_queue(own, "unaware"))
    assert own.condition("Stalled", "unaware") == {}

    own.until_phase("Succeeded", name="first")
    status = own.until_phase("Succeeded", name="unaware")
    assert [record["reason"] for record in status["attempts"]["history"]] == ["Succeeded"]


@pytest.mark.full
def test_a_job_that_has_to_make_room_saves_waits_and_goes_on_where_it_was(own: Room) -> None:
    own.apply(queued_job(own, "patient"))
    own.until_phase("Running", name="patient")
    patient = LocalRun(own.claim_folder("results") / "patient", {})
    patient.until_step(3)
    own.apply(queued_job(own, "urgent", priority="high"))
    own.until_phase("Running", name="urgent")
    own.until_phase("Queued", "Succeeded", name="patient")
    own.until_phase("Succeeded", name="urgent")
    status = own.until_phase("Succeeded", name="patient")
    last, first = status["attempts"]["history"]
    assert first["reason"] == "Preempted"
    assert last["resumedFrom"] == first["savedStep"] >= 2
    assert (status["attempts"]["failures"], status["attempts"]["disruptions"]) == (0, 1)
    urgent = LocalRun(own.claim_folder("results") / "urgent", {})
    # The same job, but for its name: what was interrupted ends as what was not.
    assert_bit_equal(patient, urgent)
