"""`python -m cluster check|up|status|down|build|images|clean`."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cluster import archives, status, versions
from cluster.build import PROGRAMS, BuildFailed, binary_of, build, finish, is_built, program_of
from cluster.client import Client, StartFailed
from cluster.down import down as down_built
from cluster.kind_runner import kind_down, kind_up
from cluster.machine import GIB, Backend, backend_for, problems, read_machine
from cluster.place import Busy, Record, alone, cache_folder, cluster_folder, kubeconfig_path, read_record
from cluster.up import up as up_built

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # An error is one line, not a box.
    rich_markup_mode=None,
    help="A real local Kubernetes for SFTJobs: kind where a Docker engine answers, else built from Go modules.",
)
console = Console(soft_wrap=True, highlight=False, markup=False)

BackendOption = Annotated[Backend | None, typer.Option(help="Default: kind where a Docker engine answers, else built.")]


@app.command()
def check(backend: BackendOption = None) -> None:
    """Say all that this machine lacks for a cluster.

    Exit code 1 where it lacks anything.
    """
    chosen = _checked(cache_folder(), backend)
    machine = read_machine(cache_folder(), is_built=is_built(cache_folder()))
    console.print(
        f"nothing is missing: {chosen}, cgroup v{machine.cgroup_version}, {machine.free_bytes / GIB:.0f} GiB free "
        f"for {machine.folder}, programs {'built' if machine.is_built else 'not built yet'}"
    )


@app.command()
def up(
    name: Annotated[str, typer.Option(help="There is one cluster on a machine at a time.")] = "sftjob",
    nodes: Annotated[int, typer.Option(min=1, max=2, help="A second one can be added later.")] = 1,
    backend: BackendOption = None,
) -> None:
    """Start the cluster, or what of it has died."""
    began = time.monotonic()
    cache = cache_folder()
    with _errors(), alone():
        folder = cluster_folder(cache)
        record = read_record(folder)
        if record and record.name != name:
            raise Refused(f"--name {name}: cluster {record.name} is there; first: python -m cluster down")
        if record and not record.ready:
            console.print("an earlier start was not finished: taking it down first")
            _down(folder, record)
            record = None
        if record and nodes <= record.nodes and not status.dead_parts(folder, cache, record):
            console.print(f"cluster {name} is up already")
            _tell_use(folder)
            return
        if record is None:
            record = Record(name, _checked(cache, backend).value, nodes)
        elif record.backend == "kind":
            raise Refused(f"cluster {name}: kind can't mend or enlarge it; first: python -m cluster down")
        record.nodes = max(nodes, record.nodes)
        _build(cache)
        start = kind_up if record.backend == "kind" else up_built
        for step in start(folder, cache, record):
            console.print(f"{time.monotonic() - began:6.1f} s  {step}")
        _link_programs(folder, cache)
        console.print(f"cluster {name} is up after {time.monotonic() - began:.0f} s: {versions.KUBERNETES}")
        _tell_use(folder)


@app.command()
def down() -> None:
    """Take the cluster away with all that is in it.

    Whole or half. Built programs and images stay; `clean` deletes them.
    """
    began = time.monotonic()
    cache = cache_folder()
    with _errors(), alone():
        folder = cluster_folder(cache)
        _down(folder, read_record(folder))
    console.print(f"no cluster is there any more ({time.monotonic() - began:.1f} s)")


@app.command("status")
def show_status() -> None:
    """Name what has died, the nodes, and what is on disk.

    Exit code 1 where not all is well.
    """
    cache = cache_folder()
    folder = cluster_folder(cache)
    record = read_record(folder)
    dead = []
    if record is None:
        console.print("no cluster; start one: python -m cluster up")
    else:
        with _errors():
            dead = status.dead_parts(folder, cache, record)
            ready = Client(binary_of(cache, "kubectl"), kubeconfig=kubeconfig_path(folder)).nodes()
        console.print(
            f"cluster {record.name} ({record.backend}){'' if record.ready else ': its start is not finished'}"
        )
        for sentence in dead:
            console.print(f"  {sentence}")
        for node, is_ready in ready.items():
            console.print(f"  {node}: {'ready' if is_ready else 'not ready'}")
        if not ready:
            console.print("  API server: no answer")
            dead.append("API server")
    for what, size in status.disk(folder, cache).items():
        console.print(f"{size / GIB:6.2f} GiB  {what}")
    console.print(f"{shutil.disk_usage(cache.anchor).free / GIB:6.2f} GiB  free")
    if dead or record is None or not record.ready or not all(ready.values()):
        raise typer.Exit(1)


@app.command("build")
def build_programs() -> None:
    """Build Kubernetes and what runs beside it.

    Minutes the first time; where it was stopped it goes on. `up` does it too.
    """
    cache = cache_folder()
    with _errors(), alone():
        _build(cache)
    console.print(f"{len(PROGRAMS)} programs in {cache / 'bin'}")


@app.command()
def packages() -> None:
    """Install the Debian packages that are missing.

    Where that can't be done, say which they are.
    """
    machine = read_machine(cache_folder(), is_built=True)
    needed = versions.DEBIAN_PACKAGES | versions.IMAGE_PACKAGES
    missing = sorted({package for program, package in needed.items() if shutil.which(program) is None})
    if not missing or machine.docker_answers:
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if not machine.is_root or shutil.which("apt-get") is None:
        console.print(f"packages: missing {', '.join(missing)}; on Debian: sudo {' '.join(install)}")
        return
    console.print(f"installing {', '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    # A package must not start a service of its own: etcd's would take the ports of another one.
    with _errors(), _no_services():
        for command in (["apt-get", "update"], install):
            subprocess.run(command, env=environment, capture_output=True, check=True)


@app.command()
def clean() -> None:
    """Delete built programs, images, registry and builder."""
    cache = cache_folder()
    with _errors(), alone():
        folder = cluster_folder(cache)
        if read_record(folder):
            raise Refused(f"{folder}: a cluster is there; first: python -m cluster down")
        freed = sum(status.disk(folder, cache).values())
        if cache.exists():
            shutil.rmtree(cache)
    console.print(f"{cache}: {freed / GIB:.1f} GiB freed")


class Refused(Exception):
    pass


@contextmanager
def _no_services() -> Iterator[None]:
    """Debian asks this file before a package starts what it brings; one that is there already is left alone."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _checked(cache: Path, asked: Backend | None) -> Backend:
    """Exits with every problem that this machine has; else returns the backend that fits."""
    machine = read_machine(cache, is_built=is_built(cache))
    backend = asked or backend_for(machine)
    found = problems(machine, backend)
    for problem in found:
        console.print(problem)
    if found:
        raise typer.Exit(1)
    return backend


def _build(cache: Path) -> None:
    if not is_built(cache):
        columns = (
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(PROGRAMS))
            for program in PROGRAMS:
                progress.update(task, description=f"{program.name} {program.version}")
                for line in build(cache, program):
                    progress.update(task, description=f"{program.name} {program.version}: {line[:60]}")
                progress.advance(task)
        for old in status.old_programs(cache):
            old.unlink()
    finish(cache)
    for name in archives.IN_PODS:
        archives.make_archive(cache, program_of(name))


def _down(folder: Path, record: Record | None) -> None:
    if record and record.backend == "kind":
        kind_down(folder, record)
    else:
        down_built(folder)


def _link_programs(folder: Path, cache: Path) -> None:
    """Under their plain names, for a user's PATH."""
    (folder / "bin").mkdir(exist_ok=True)
    for name in ("kubectl", "helm"):
        link = folder / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(binary_of(cache, name))


def _tell_use(folder: Path) -> None:
    console.print(f"export KUBECONFIG={kubeconfig_path(folder)} PATH={folder / 'bin'}:$PATH")


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (Refused, Busy, BuildFailed, StartFailed, TimeoutError) as failure:
        console.print(str(failure))
        raise typer.Exit(1) from None
    except subprocess.CalledProcessError as failure:
        said = failure.stderr or failure.stdout or b""
        console.print(
            f"{' '.join(map(str, failure.cmd))}: failed: {said.decode() if isinstance(said, bytes) else said}"
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped; `up` again goes on, `down` takes away what is there")
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app()
