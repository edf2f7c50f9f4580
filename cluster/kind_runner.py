"""Runs kind's commands, and brings the cluster's own pods into its nodes."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cluster import archives, kind, manifests
from cluster.build import binary_of, program_of
from cluster.client import Client, StartFailed
from cluster.place import Record, kubeconfig_path


def kind_up(folder: Path, cache: Path, record: Record) -> Iterator[str]:
    """Yields what it waits for.

    Raises StartFailed with what the command said that failed.
    """
    claims = folder / "claims"
    claims.mkdir(exist_ok=True)
    kubeconfig, kubectl = kubeconfig_path(folder), binary_of(cache, "kubectl")
    provisioner, operator = program_of("provisioner"), program_of("training-operator")
    for command in (
        *kind.up_commands(record.name, nodes=record.nodes, claims=claims, kubeconfig=kubeconfig, kubectl=kubectl),
        *(
            kind.load_archive_command(record.name, archive=archives.archive_path(cache, program))
            for program in (provisioner, operator)
        ),
    ):
        yield " ".join(command.arguments[:3])
        _run(command)
    client = Client(kubectl, kubeconfig=kubeconfig)
    client.apply(manifests.storage(archives.image_name(provisioner), claims=claims))
    client.apply(manifests.training_operator(cache))
    for name, namespace in manifests.DEPLOYMENTS.items():
        yield name
        wait = ("wait", "--for=condition=Available", f"deployment/{name}", f"--namespace={namespace}", "--timeout=300s")
        done = client.run(*wait)
        if done.returncode:
            raise StartFailed(f"{name}: {done.stderr.strip()}")


def kind_down(folder: Path, record: Record) -> None:
    # Fails where no node lives any more: then the user is told which folder is left.
    empty = kind.empty_claims_command(record.name, claims=folder / "claims")
    subprocess.run(empty.arguments, capture_output=True)
    for command in kind.down_commands(record.name, kubeconfig=kubeconfig_path(folder)):
        _run(command)
    shutil.rmtree(folder)


def _run(command: kind.Command) -> None:
    done = subprocess.run(command.arguments, input=command.stdin, capture_output=True, text=True)
    if done.returncode:
        raise StartFailed(f"{' '.join(command.arguments)}: failed: {done.stderr.strip()}")
