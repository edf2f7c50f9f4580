"""Kueue in the cluster that is up, for jobs that wait in queues: `python -m cluster kueue`.

It is no part of every cluster: building it takes minutes, and it goes with the cluster that it was put into.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from cluster import kind, manifests, node
from cluster.archives import make_archive
from cluster.build import KUEUE, binary, binary_of, build, finish, module_folder
from cluster.client import Client, StartFailed
from cluster.machine import Backend
from cluster.parts import parts, pid_of
from cluster.place import Record, kubeconfig_path


def build_kueue(cache: Path) -> Iterator[str]:
    """Yields what is compiled; nothing where it was built before."""
    if not manifests.kueue_rendered(cache).exists() or not binary(cache, KUEUE).exists():
        yield from build(cache, KUEUE)
        module = module_folder(cache, "sigs.k8s.io/kueue", pinned_by=KUEUE.module)
        manifests.render_kueue(cache, module, binary_of(cache, "kubectl"))
        finish(cache)


def install_kueue(folder: Path, cache: Path, record: Record) -> None:
    """Returns when its webhooks answer. Raises StartFailed with what did not come."""
    archive = make_archive(cache, KUEUE)
    if record.backend is Backend.KIND:
        command = kind.load_archive_command(record.name, archive=archive)
        subprocess.run(command.arguments, input=command.stdin, capture_output=True, text=True, check=True)
    else:
        holder = next(part for part in parts(folder, cache, nodes=record.nodes) if part.holds_node)
        pid = pid_of(holder)
        assert pid is not None, "its cluster is up"
        node.Containerd(pid).load(archive)
    client = Client(binary_of(cache, "kubectl"), kubeconfig=kubeconfig_path(folder))
    client.apply(manifests.kueue(cache))
    wait = ("wait", "--for=condition=Available", "deployment/kueue-controller-manager", "--timeout=180s")
    done = client.run(*wait, "--namespace=kueue-system")
    if done.returncode:
        raise StartFailed(f"kueue: {done.stderr.strip()}; see kubectl --namespace kueue-system logs deployment/...")
