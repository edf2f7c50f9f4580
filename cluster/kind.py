"""The cluster on a Docker engine: kind's nodes and a registry as containers, as data and the commands that make them.

In come a name, a number of nodes and paths; out go kind's configuration and commands, which a runner runs in order
until one fails. Charts, images and tests are the same as without Docker: images are named `localhost:5000/...`, and
claims are folders that lie under the same path on every node.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import versions

REGISTRY_PORT = 5000

ENGINE_PATIENCE_SECONDS = 10
NODES_PATIENCE_SECONDS = 300

REGISTRIES = "/etc/containerd/certs.d"
"""In a node: a folder for each registry, read at every pull, so that a new one needs no restart of containerd."""

# The plugin's name is the one of the node image's own containerd configuration.
REGISTRIES_IN_FOLDERS = f"""\
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{REGISTRIES}"
"""

# kind keeps pods off the control plane where there are other nodes.
FOR_PODS_TOO = """\
kind: InitConfiguration
nodeRegistration:
  taints: []
"""


@dataclass(frozen=True)
class Command:
    arguments: tuple[str, ...]
    stdin: str = ""


def engine_answers() -> bool:
    """Whether a Docker engine can be reached, not only whether there is a program `docker`."""
    if shutil.which("docker") is None:
        return False
    question = ["docker", "info", "--format", "{{.ServerVersion}}"]
    try:
        told = subprocess.run(question, capture_output=True, text=True, timeout=ENGINE_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return told.returncode == 0 and told.stdout.strip() != ""


def node_names(name: str, *, nodes: int) -> list[str]:
    """As kind gives them, to nodes and to their containers alike."""
    workers = ["worker", *(f"worker{number}" for number in range(2, nodes))]
    return [f"{name}-{role}" for role in ["control-plane", *workers][:nodes]]


def registry_name(name: str) -> str:
    return f"{name}-registry"


def configuration(name: str, *, nodes: int, claims: Path) -> dict[str, Any]:
    """kind's configuration of a cluster whose nodes, `nodes` in all, take pods and have the folder `claims`.

    `claims` is absolute and exists: where it doesn't, the engine makes it without a word.
    """
    mounts = [{"hostPath": str(claims), "containerPath": str(claims)}]
    # The cluster's own pods ask for the first node.
    labels = {"sftjob.dev/node": "1"}
    control_plane = {
        "role": "control-plane",
        "image": versions.KIND_NODE_IMAGE,
        "labels": labels,
        "extraMounts": mounts,
    }
    worker = {"role": "worker", "image": versions.KIND_NODE_IMAGE, "extraMounts": mounts}
    if nodes > 1:
        # Not for a single node: there kind takes the taint away itself, and fails where there is none.
        control_plane = control_plane | {"kubeadmConfigPatches": [FOR_PODS_TOO]}
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": name,
        "networking": {"apiServerAddress": "127.0.0.1"},
        "containerdConfigPatches": [REGISTRIES_IN_FOLDERS],
        "nodes": [control_plane, *[worker] * (nodes - 1)],
    }


def up_commands(name: str, *, nodes: int, claims: Path, kubeconfig: Path, kubectl: Path) -> list[Command]:
    """Where nothing of that name is there yet; what is left of a run that failed, `down_commands` removes.

    The registry comes after the cluster: kind makes the network in which nodes find it by its name.
    """
    # --name, because a KIND_CLUSTER_NAME in the environment goes before the name in the configuration.
    create = ("kind", "create", "cluster", "--name", name, "--config", "-", "--kubeconfig", str(kubeconfig))
    ask = (str(kubectl), "--kubeconfig", str(kubeconfig))
    no_default = "storageclass.kubernetes.io/is-default-class=false"
    return [
        # JSON is YAML.
        Command(create, stdin=json.dumps(configuration(name, nodes=nodes, claims=claims), indent=2)),
        _run_registry(name),
        *(command for node in node_names(name, nodes=nodes) for command in _show_registry(name, node=node)),
        # kind's own class makes folders that everyone may write, which would hide a pod's missing permission.
        Command((*ask, "annotate", "--overwrite", "storageclass", "standard", no_default)),
        Command((*ask, "wait", "--for=condition=Ready", "nodes", "--all", f"--timeout={NODES_PATIENCE_SECONDS}s")),
    ]


def empty_claims_command(name: str, *, claims: Path) -> Command:
    """What pods wrote is not the user's to delete, but a node's; fails where there is none."""
    node = node_names(name, nodes=1)[0]
    return Command(("docker", "exec", node, "find", str(claims), "-mindepth", "1", "-delete"))


def down_commands(name: str, *, kubeconfig: Path) -> list[Command]:
    """Succeed where there is nothing to remove, too."""
    return [
        Command(("kind", "delete", "cluster", "--name", name, "--kubeconfig", str(kubeconfig))),
        Command(("docker", "rm", "--force", "--volumes", registry_name(name))),
    ]


def status_command(name: str) -> Command:
    """Prints a line `<node> <state>` for each node, running or not; nothing where there is no cluster."""
    label = f"label=io.x-k8s.kind.cluster={name}"
    return Command(("docker", "ps", "--all", "--filter", label, "--format", "{{.Names}} {{.State}}"))


def load_archive_command(name: str, *, archive: Path) -> Command:
    """Brings the images of a docker-archive into every node, past the registry."""
    return Command(("kind", "load", "image-archive", "--name", name, str(archive)))


def _run_registry(name: str) -> Command:
    place = ("--network", "kind", "--publish", f"127.0.0.1:{REGISTRY_PORT}:5000")
    return Command(
        (
            "docker",
            "run",
            "--detach",
            "--restart=always",
            "--name",
            registry_name(name),
            *place,
            versions.KIND_REGISTRY_IMAGE,
        )
    )


def _show_registry(name: str, *, node: str) -> list[Command]:
    """A node's localhost is the node itself: its containerd is told which container the images' registry is."""
    folder = f"{REGISTRIES}/localhost:{REGISTRY_PORT}"
    write = ("docker", "exec", "--interactive", node, "cp", "/dev/stdin", f"{folder}/hosts.toml")
    return [
        Command(("docker", "exec", node, "mkdir", "--parents", folder)),
        Command(write, stdin=f'[host."http://{registry_name(name)}:5000"]\n'),
    ]
