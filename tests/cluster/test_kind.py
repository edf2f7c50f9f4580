"""kind's configuration and the commands of the Docker backend, compared whole."""

import json
from pathlib import Path

import pytest
import yaml

from cluster.kind import (
    Command,
    configuration,
    down_commands,
    engine_answers,
    load_archive_command,
    status_command,
    up_commands,
)

IMAGE = "kindest/node:v1.34.0@sha256:7416a61b42b1662ca6ca89f02028ac133a309a2a30ba309614e8ec94d976dc5a"
REGISTRY = "registry:3.0.0@sha256:6c5666b861f3505b116bb9aa9b25175e71210414bd010d92035ff64018f9457e"
MOUNTS = [{"hostPath": "/data/claims", "containerPath": "/data/claims"}]
CONTAINERD = '[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n'
HOSTS = '[host."http://sft-registry:5000"]\n'

ONE_NODE = {
    "kind": "Cluster",
    "apiVersion": "kind.x-k8s.io/v1alpha4",
    "name": "sft",
    "networking": {"apiServerAddress": "127.0.0.1"},
    "containerdConfigPatches": [CONTAINERD],
    "nodes": [{"role": "control-plane", "image": IMAGE, "labels": {"sftjob.dev/node": "1"}, "extraMounts": MOUNTS}],
}
TWO_NODES = ONE_NODE | {
    "nodes": [
        {
            "role": "control-plane",
            "image": IMAGE,
            "labels": {"sftjob.dev/node": "1"},
            "extraMounts": MOUNTS,
            "kubeadmConfigPatches": ["kind: InitConfiguration\nnodeRegistration:\n  taints: []\n"],
        },
        {"role": "worker", "image": IMAGE, "extraMounts": MOUNTS},
    ]
}


def commands(text: str) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in text.strip().splitlines()]


def test_a_single_node_is_left_to_kind_which_lets_it_take_pods() -> None:
    assert configuration("sft", nodes=1, claims=Path("/data/claims")) == ONE_NODE


def test_with_several_nodes_the_control_plane_takes_pods_too() -> None:
    assert configuration("sft", nodes=2, claims=Path("/data/claims")) == TWO_NODES
    three = configuration("sft", nodes=3, claims=Path("/data/claims"))
    assert three == TWO_NODES | {"nodes": [*TWO_NODES["nodes"], TWO_NODES["nodes"][1]]}


def test_a_cluster_of_one_node_comes_up_with_its_registry_and_without_kinds_default_class() -> None:
    up = up_commands(
        "sft",
        nodes=1,
        claims=Path("/data/claims"),
        kubeconfig=Path("/data/kubeconfig"),
        kubectl=Path("/bin/kubectl-v1"),
    )
    assert [command.arguments for command in up] == commands(f"""
        kind create cluster --name sft --config - --kubeconfig /data/kubeconfig
        docker run --detach --restart=always --name sft-registry --network kind --publish 127.0.0.1:5000:5000 {REGISTRY}
        docker exec sft-control-plane mkdir --parents /etc/containerd/certs.d/localhost:5000
        docker exec --interactive sft-control-plane cp /dev/stdin /etc/containerd/certs.d/localhost:5000/hosts.toml
        /bin/kubectl-v1 --kubeconfig /data/kubeconfig annotate --overwrite storageclass standard \
            storageclass.kubernetes.io/is-default-class=false
        /bin/kubectl-v1 --kubeconfig /data/kubeconfig wait --for=condition=Ready nodes --all --timeout=300s
    """)
    assert yaml.safe_load(up[0].stdin) == ONE_NODE
    assert [command.stdin for command in up[1:]] == ["", "", HOSTS, "", ""]


def test_every_node_is_told_where_the_registry_is() -> None:
    up = up_commands(
        "sft", nodes=3, claims=Path("/data/claims"), kubeconfig=Path("/data/kubeconfig"), kubectl=Path("kubectl")
    )
    assert json.loads(up[0].stdin) == configuration("sft", nodes=3, claims=Path("/data/claims"))
    told = [command.arguments[3] for command in up if command.stdin == HOSTS]
    assert told == ["sft-control-plane", "sft-worker", "sft-worker2"]


def test_down_removes_cluster_and_registry() -> None:
    down = down_commands("sft", kubeconfig=Path("/data/kubeconfig"))
    assert [command.arguments for command in down] == commands("""
        kind delete cluster --name sft --kubeconfig /data/kubeconfig
        docker rm --force --volumes sft-registry
    """)


def test_the_state_of_the_nodes_is_asked_of_the_engine() -> None:
    filtered = ("--filter", "label=io.x-k8s.kind.cluster=sft")
    assert status_command("sft") == Command(("docker", "ps", "--all", *filtered, "--format", "{{.Names}} {{.State}}"))


def test_an_archive_of_images_is_loaded_into_every_node() -> None:
    assert load_archive_command("sft", archive=Path("/data/my pause.tar")) == Command(
        ("kind", "load", "image-archive", "--name", "sft", "/data/my pause.tar")
    )


@pytest.mark.parametrize(
    ("docker", "answers"),
    [("echo 28.2.2", True), ("echo 'Cannot connect'; exit 1", False), ("true", False), (None, False)],
)
def test_an_engine_answers_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker: str | None, answers: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if docker:
        program = tmp_path / "docker"
        program.write_text(f"#!/bin/sh\n{docker}\n")
        program.chmod(0o755)
    assert engine_answers() is answers
