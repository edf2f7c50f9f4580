"""`python -m cluster check|build|clean`."""

import shutil

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cluster.build import PROGRAMS, BuildFailed, build, cache_folder, is_built
from cluster.machine import GIB, problems, read_machine

app = typer.Typer(no_args_is_help=True, add_completion=False, help="What a local Kubernetes for SFTJobs is made of.")
console = Console(soft_wrap=True)


@app.command()
def check() -> None:
    """Say what this machine lacks for a cluster, all at once; exit code 1 where it lacks anything."""
    cache = cache_folder()
    machine = read_machine(cache, is_built=is_built(cache))
    found = problems(machine)
    for problem in found:
        console.print(problem, highlight=False, markup=False)
    if found:
        raise typer.Exit(1)
    console.print(
        f"nothing is missing: cgroup v{machine.cgroup_version}, {machine.free_bytes / GIB:.0f} GiB free "
        f"for {cache}, programs {'built' if machine.is_built else 'not built yet'}",
        highlight=False,
    )


@app.command("build")
def build_programs() -> None:
    """Build Kubernetes and what runs beside it; minutes the first time, and where it was stopped it goes on."""
    cache = cache_folder()
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
            try:
                for line in build(cache, program):
                    progress.update(task, description=f"{program.name} {program.version}: {line[:60]}")
            except BuildFailed as failure:
                console.print(str(failure), highlight=False, markup=False)
                raise typer.Exit(1) from None
            progress.advance(task)
    console.print(f"{len(PROGRAMS)} programs in {cache / 'bin'}", highlight=False)


@app.command()
def clean() -> None:
    """Delete the built programs; Go's own caches stay (`go clean -cache -modcache`)."""
    cache = cache_folder()
    freed = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    if cache.exists():
        shutil.rmtree(cache)
    console.print(f"{cache}: {freed / GIB:.1f} GiB freed", highlight=False)


if __name__ == "__main__":
    app()
