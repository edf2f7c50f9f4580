"""The operator's benchmark at its smallest: every figure is there, and the cluster is as it was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from real_cluster import PATIENCE_SECONDS, Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.full]

SIZES = ("--jobs=4", "--released=3", "--burst=6", "--finished=10", "--live=3", "--idle-seconds=10")


def test_a_small_run_measures_everything_and_leaves_the_cluster_as_it_was(cluster: Cluster, tmp_path: Path) -> None:
    before = what_there_is(cluster)
    chart = tmp_path / "scale.png"
    command = [sys.executable, "-m", "benchmarks.operator", "--json", *SIZES, f"--chart={chart}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for figure in ("ratio", "ratio_to_released", "burst_seconds", "cold_seconds", "pod_to_status_p99_seconds"):
        assert report[figure] > 0, figure
    assert 0 < report["rss_mib"] < 256
    assert report["idle_writes"] == 0
    assert {name: len(turn["answered"]) for name, turn in report["turns"].items()} == {
        "first": 3,
        "second": 3,
        "lifted": 3,
        "released": 2,
        "burst": 5,
    }
    assert len(report["pod_to_status_seconds"]) == 6
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert what_there_is(cluster) == before


def what_there_is(cluster: Cluster) -> tuple[set[str], list[str], dict[str, object]]:
    """Namespaces, webhooks' names, and training-operator's deployment."""
    namespaces = set(cluster.kubectl("get", "namespaces", "--output=name").split())
    kinds = "validatingwebhookconfigurations,mutatingwebhookconfigurations"
    rules = [
        (webhook["name"], webhook.get("namespaceSelector"))
        for one in json.loads(cluster.kubectl("get", kinds, "--output=json"))["items"]
        for webhook in one.get("webhooks", [])
    ]
    deployment = json.loads(
        cluster.kubectl("get", "deployment", "training-operator", "--namespace=kubeflow", "--output=json")
    )
    return namespaces, sorted(map(json.dumps, rules)), deployment["spec"]
