"""Runs kind's commands, and brings the cluster's own pods into its nodes."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cluster import archives, kind, manifests
from cluster.build import program_of
from cluster.place import Record
from cluster.up import DEPLOYMENTS, StartFailed, kubeconfig_path, kubectl

IN_PODS = ("provisioner", "training-operator")
"""kind's nodes have pause and CoreDNS of their own."""


def kind_up(folder: Path, cache: Path, record: Record) -> Iterator[str]:
    """Yields what it waits for.

    Raises StartFailed with what the command said that failed.
    """
    record.write(folder)
    (folder / "claims").mkdir(exist_ok=True)
    kubeconfig = kubeconfig_path(folder)
    kubeconfig.parent.mkdir(exist_ok=True)
    commands = kind.up_commands(record.name, nodes=record.nodes, claims=folder / "claims", kubeconfig=kubeconfig)
    programs = [program_of(name) for name in IN_PODS]
    archive_paths = [archives.archive_path(cache, program) for program in programs]
    commands += [kind.load_archive_command(record.name, archive=path) for path in archive_paths]
    for command in commands:
        yield " ".join(command.arguments[:3])
        _run(command)
    for document in (
        manifests.storage(archives.image_name(programs[0]), claims=folder / "claims"),
        manifests.training_operator(cache),
    ):
        done = kubectl(folder, cache, "apply", "--server-side", "--force-conflicts", "--filename=-", stdin=document)
        if done.returncode:
            raise StartFailed(f"kubectl apply: {done.stderr.strip()}")
    for namespace, name in DEPLOYMENTS:
        yield name
        wait = ("wait", "--for=condition=Available", f"deployment/{name}", f"--namespace={namespace}", "--timeout=300s")
        done = kubectl(folder, cache, *wait)
        if done.returncode:
            raise StartFailed(f"{name}: {done.stderr.strip()}")
    record.ready = True
    record.write(folder)


def kind_down(folder: Path, record: Record) -> None:
    for command in kind.down_commands(record.name, kubeconfig=kubeconfig_path(folder)):
        _run(command)
    shutil.rmtree(folder)


def _run(command: kind.Command) -> None:
    done = subprocess.run(command.arguments, input=command.stdin, capture_output=True, text=True)
    if done.returncode:
        raise StartFailed(f"{' '.join(command.arguments)}: failed: {done.stderr.strip()}")
