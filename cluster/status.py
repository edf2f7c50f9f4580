"""What of the cluster lives, and what it takes of the disk."""

import subprocess
from pathlib import Path

from cluster import kind, manifests
from cluster.build import binary_of
from cluster.client import Client
from cluster.machine import Backend
from cluster.parts import is_alive, log_file, parts
from cluster.place import Record, kubeconfig_path, size_bytes


def not_well(folder: Path, cache: Path, record: Record) -> list[str]:
    """A sentence for all that has died or is not ready, with where to look."""
    dead = _dead(folder, cache, record)
    if dead:
        return dead  # what else is not well may follow from it
    client = Client(binary_of(cache, "kubectl"), kubeconfig=kubeconfig_path(folder))
    nodes = client.nodes()
    if not nodes:
        return ["API server: no answer"]
    not_ready = [f"{name}: not ready; see kubectl describe node {name}" for name, ready in nodes.items() if not ready]
    missing = [
        f"{name}: not available; see kubectl --namespace {namespace} describe deployment {name}"
        for name, namespace in manifests.DEPLOYMENTS.items()
        if not client.has_condition(f"deployment/{name}", "Available", namespace=namespace)
    ]
    return [*not_ready, *missing]


def _dead(folder: Path, cache: Path, record: Record) -> list[str]:
    if record.backend is Backend.KIND:
        told = subprocess.run(kind.status_command(record.name).arguments, capture_output=True, text=True, check=True)
        states = dict(line.split() for line in told.stdout.splitlines())
        expected = kind.node_names(record.name, nodes=record.nodes)
        dead = {name: states.get(name, "gone") for name in expected if states.get(name) != "running"}
        return [f"{name}: {state}; see docker logs {name}" for name, state in dead.items()]
    every = parts(folder, cache, nodes=record.nodes)
    return [f"{part.name}: ended; see {log_file(folder, part)}" for part in every if not is_alive(part)]


def disk(folder: Path, cache: Path) -> dict[str, int]:
    """Bytes, by what they are."""
    inside = {"claims": folder / "claims"}
    inside |= {path.name.replace("-", " "): path for path in sorted(cache.glob("images-of-node-*"))}
    found = {
        "programs": size_bytes(cache / "bin"),
        "their images": size_bytes(cache / "images"),
        "registry": size_bytes(cache / "registry"),
        "image builder": size_bytes(cache / "builder"),
        "Go's caches": size_bytes(cache / "go"),
        **{name: size_bytes(path) for name, path in inside.items()},
    }
    found["the rest"] = max(0, size_bytes(cache) - sum(found.values()))
    return {name: size for name, size in found.items() if size}
