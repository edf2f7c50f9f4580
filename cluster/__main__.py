"""`python -m cluster check|up|status|down|build|images|kueue|packages|clean`."""

import errno
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

from cluster import cgroups, images, kind, network, packages, status
from cluster.archives import make_archive
from cluster.build import KUEUE, binary_of, build, finish, is_built, old_files, programs_for
from cluster.client import Client, StartFailed
from cluster.commands import CommandFailed
from cluster.down import down as down_built
from cluster.kind_runner import kind_down, kind_up
from cluster.kueue import build_kueue, install_kueue
from cluster.machine import GIB, Backend, Machine, existing, image_problems, needed_bytes, problems, read_machine
from cluster.place import RUN, Busy, Record, alone, cache_folder, cluster_folder, kubeconfig_path, read_record
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
    cache = cache_folder()
    machine, chosen = _checked(cache, backend)
    built = "built" if machine.is_built else "not built yet"
    free, needed = machine.free_bytes / GIB, needed_bytes(machine) / GIB
    console.print(
        f"nothing is missing: {chosen}, cgroup v{machine.cgroup_version}, {free:.0f} GiB free of the {needed:.0f} "
        f"needed for {machine.folder}, programs {built}"
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
    folder = cluster_folder(cache)
    with _errors(), alone():
        record = read_record(folder)
        if record:
            _check_same(record, name, backend)
        if _is_half(folder, record):
            console.print("an earlier start was not finished: taking it down first")
            _down(folder, record)
            record = None
        if record and nodes <= record.nodes and not status.not_well(folder, cache, record):
            console.print(f"cluster {name} is up already")
            _tell_use(folder)
            return
        if record is None:
            _, chosen = _checked(cache, backend)
            record = Record(name, chosen, nodes, programs=_program_names(chosen))
        elif record.backend is Backend.KIND:
            raise Refused(f"cluster {name}: kind can't mend or enlarge it; first: python -m cluster down")
        record.nodes = max(nodes, record.nodes)
        _build(cache, record.backend)
        record.write(folder)
        start = kind_up if record.backend is Backend.KIND else up_built
        for step in start(folder, cache, record):
            console.print(f"{time.monotonic() - began:6.1f} s  {step}")
        _link_programs(folder, cache)
        record.ready = True
        record.write(folder)
        console.print(f"cluster {name} is up after {time.monotonic() - began:.0f} s")
        _tell_use(folder)


@app.command()
def down() -> None:
    """Take the cluster away with all that is in it.

    Whole or half. Built programs and images stay; `clean` deletes them.
    """
    began = time.monotonic()
    folder = cluster_folder(cache_folder())
    with _errors(), alone():
        _down(folder, read_record(folder))
    console.print(f"no cluster is there any more ({time.monotonic() - began:.1f} s)")


@app.command("status")
def show_status() -> None:
    """Name what has died, the nodes, and what is on disk.

    Exit code 1 where not all is well.
    """
    cache = cache_folder()
    folder = cluster_folder(cache)
    with _errors():
        record = read_record(folder)
        if record is None:
            troubles = ["no cluster; start one: python -m cluster up"]
        else:
            state = f"{record.nodes} nodes" if record.ready else "its start is not finished"
            console.print(f"cluster {record.name} ({record.backend}): {state}")
            troubles = status.not_well(folder, cache, record)
        for trouble in troubles:
            console.print(trouble)
        for what, size in status.disk(folder, cache).items():
            console.print(f"{size / GIB:6.2f} GiB  {what}")
        console.print(f"{shutil.disk_usage(existing(cache)).free / GIB:6.2f} GiB  free")
    if troubles or record is None or not record.ready:
        raise typer.Exit(1)


@app.command("build")
def build_programs(backend: BackendOption = None) -> None:
    """Build Kubernetes and what runs beside it.

    Minutes the first time; where it was stopped it goes on. `up` does it too.
    """
    cache = cache_folder()
    with _errors(), alone():
        _, chosen = _checked(cache, backend)
        _build(cache, chosen)
    console.print(f"{len(programs_for(chosen))} programs in {cache / 'bin'}")


@app.command("images")
def build_images() -> None:
    """Build the images of trainer and operator, and load them where a cluster is up.

    A change of our own code takes seconds. Where no cluster is up, call it again when one is: it only loads then.
    """
    began = time.monotonic()
    cache = cache_folder()
    folder = cluster_folder(cache)
    with _errors(), alone():
        machine, backend = _machine(cache, None)
        record = read_record(folder)
        is_up = record is not None and record.ready
        for problem in image_problems(machine, backend, has_built_before=images.storage(cache).exists()):
            raise Refused(problem)
        sources = images.read_sources()
        if backend is Backend.KIND:
            steps = images.docker_steps(sources, push=is_up)
        else:
            bases = images.base_images(cache)
            steps = images.buildah_steps(cache, sources, bases=bases, registry=network.REGISTRY if is_up else None)
        with Progress(
            SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=console
        ) as progress:
            task = progress.add_task("")
            for step in steps:
                progress.update(task, description=step.name)
                for line in images.run(step, sources):
                    progress.update(task, description=f"{step.name}: {line[:80]}")
            if is_up:
                client = Client(binary_of(cache, "kubectl"), kubeconfig=kubeconfig_path(folder))
                for image in images.IMAGES:
                    for node in client.nodes():
                        progress.update(task, description=f"load {image.name} on {node}")
                        client.load_image(image.in_pods, node=node)
    built = " and ".join(image.in_pods for image in images.IMAGES)
    pushed = "on every node" if is_up else "not pushed, for no cluster is up"
    console.print(f"{built} are built, and {pushed} ({time.monotonic() - began:.0f} s)")


@app.command("kueue")
def add_kueue() -> None:
    """Put Kueue into the cluster that is up, for jobs that wait in queues.

    Built the first time that it is asked for: minutes.
    """
    began = time.monotonic()
    cache = cache_folder()
    folder = cluster_folder(cache)
    with _errors(), alone():
        record = read_record(folder)
        if record is None or not record.ready:
            raise Refused("no cluster is up; first: python -m cluster up")
        with Progress(
            SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=console
        ) as progress:
            task = progress.add_task(KUEUE.name)
            for line in build_kueue(cache):
                progress.update(task, description=f"{KUEUE.name} {KUEUE.version}: {line[:60]}")
            progress.update(task, description="install")
            install_kueue(folder, cache, record)
    console.print(f"Kueue {KUEUE.version} is in cluster {record.name} ({time.monotonic() - began:.0f} s)")


@app.command("packages")
def install_packages() -> None:
    """Install the Debian packages that are missing.

    Where that can't be done, say which they are.
    """
    machine, backend = _machine(cache_folder(), None)
    missing = packages.missing_packages(machine)
    if not missing or backend is Backend.KIND:
        return
    if not packages.can_install(machine):
        console.print(
            f"packages: missing {', '.join(missing)}; on Debian: sudo {' '.join(packages.install_command(missing))}"
        )
        return
    console.print(f"installing {', '.join(missing)}")
    with _errors(), alone():
        packages.install(missing)


@app.command()
def clean() -> None:
    """Delete built programs, images, registry and builder."""
    cache = cache_folder()
    folder = cluster_folder(cache)
    with _errors(), alone():
        if folder.exists() or _remains():
            raise Refused(f"{folder}: a cluster is there; first: python -m cluster down")
        freed = sum(status.disk(folder, cache).values())
        if cache.exists():
            _make_writable(cache / "go")
            shutil.rmtree(cache)
    console.print(f"{cache}: {freed / GIB:.1f} GiB freed")


class Refused(Exception):
    pass


def _check_same(record: Record, name: str, backend: Backend | None) -> None:
    first = "first: python -m cluster down"
    if record.name != name:
        raise Refused(f"--name {name}: cluster {record.name} is there; {first}")
    if backend not in (None, record.backend):
        raise Refused(f"--backend {backend}: cluster {name} is {record.backend}; {first}")
    if record.programs != _program_names(record.backend):
        raise Refused(f"cluster {name} was started with programs of other versions; {first}")


def _program_names(backend: Backend) -> list[str]:
    return [program.file_name for program in programs_for(backend)]


def _is_half(folder: Path, record: Record | None) -> bool:
    return folder.exists() or _remains() if record is None else not record.ready


def _remains() -> bool:
    return RUN.exists() or cgroups.exists() or bool(network.links())


def _machine(cache: Path, asked: Backend | None) -> tuple[Machine, Backend]:
    docker_answers = kind.engine_answers()
    backend = asked or (Backend.KIND if docker_answers else Backend.BUILT)
    return read_machine(cache, docker_answers=docker_answers, is_built=is_built(cache, backend)), backend


def _checked(cache: Path, asked: Backend | None) -> tuple[Machine, Backend]:
    """Exits with every problem that this machine has."""
    machine, backend = _machine(cache, asked)
    found = problems(machine, backend)
    for problem in found:
        console.print(problem)
    if found:
        raise typer.Exit(1)
    return machine, backend


def _build(cache: Path, backend: Backend) -> None:
    programs = programs_for(backend)
    if not is_built(cache, backend):
        columns = (
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(programs))
            for program in programs:
                progress.update(task, description=f"{program.name} {program.version}")
                for line in build(cache, program):
                    progress.update(task, description=f"{program.name} {program.version}: {line[:60]}")
                progress.advance(task)
                if not console.is_terminal:
                    console.print(f"built {program.name} {program.version}")
    finish(cache)
    for old in old_files(cache):
        old.unlink()
    for program in programs:
        if program.in_pods:
            make_archive(cache, program)


def _down(folder: Path, record: Record | None) -> None:
    if record and record.backend is Backend.KIND:
        kind_down(folder, record)
    elif folder.exists() or _remains():
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


def _make_writable(modules: Path) -> None:
    """Go makes its modules' folders read-only, for their owner too."""
    for parent, _, _ in os.walk(modules):
        Path(parent).chmod(0o755)


@contextmanager
def _errors() -> Iterator[None]:
    """A sentence instead of a traceback, for what can go wrong on a user's machine."""
    try:
        yield
    except (Refused, Busy, CommandFailed, StartFailed, TimeoutError) as failure:
        console.print(str(failure))
    except PermissionError as failure:
        console.print(f"user: may not use {failure.filename}; a built cluster is root's: sudo python -m cluster ...")
    except OSError as failure:
        damaged = "; delete it, `up` makes it again" if failure.errno == errno.ENOEXEC else ""
        console.print(f"{failure.filename}: {failure.strerror}{damaged}")
    except subprocess.CalledProcessError as failure:
        said = failure.stderr or failure.stdout or b""
        console.print(
            f"{' '.join(map(str, failure.cmd))}: failed: {said.decode() if isinstance(said, bytes) else said}"
        )
    except KeyboardInterrupt:
        console.print("stopped; `up` starts anew, `down` takes away what is there")
        raise typer.Exit(130) from None
    else:
        return
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
