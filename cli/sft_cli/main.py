"""The `sft` command. Each command reads its arguments, calls one function and exits with what that returns."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sft_cli.manifest_file import read_manifest
from sft_cli.metrics import read_metrics
from sft_cli.plot import plot_loss
from sft_cli.refusal import Refusal
from sft_cli.run import run_command, run_job, tell_result
from sft_cli.work_folder import WorkFolder
from sft_operator.local.lock import Locked, locked
from sftjob.failure import ExitCode
from sftjob.problems import SpecError

commands = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Fine-tune language models: SFTJobs on this machine."
)

ManifestFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="A YAML file with one SFTJob.")]


@commands.command()
def run(
    file: ManifestFile,
    work_dir: Annotated[Path | None, typer.Option(help="The run's own folder. [default: runs/<name>]")] = None,
    claim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="What pvc://NAME/ stands for. [default: claims/<NAME>]"),
    ] = None,
) -> None:
    """Run a job as processes of this machine; go on with it where an earlier run was stopped."""
    manifest = read_manifest(file)
    folder = WorkFolder(work_dir or Path("runs") / manifest.metadata.name)
    _require_trainer()
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{folder.path}: {error.strerror}; name another --work-dir", code=ExitCode.STORAGE) from None
    console = Console()
    try:
        with locked(folder.run_lock):
            job = folder.open(manifest, claim_folders=dict(_claim_folder(option) for option in claim or []))
            if job.status.phase.is_final:
                console.print(f"{folder.path}: this run has ended already", markup=False, highlight=False)
                raise typer.Exit(tell_result(folder, console))
            again = run_command(file, folder)
            raise typer.Exit(asyncio.run(run_job(folder, console, again=again)))
    except Locked:
        raise Refusal(f"{folder.path}: another `sft run` is at work in this folder; wait for it or stop it") from None


@commands.command()
def validate(file: ManifestFile) -> None:
    """Check a job's file: every problem with its path, value and remedy."""
    manifest = read_manifest(file)
    compute, batch = manifest.spec.compute, manifest.spec.training.global_batch_size or manifest.spec.compute.world_size
    typer.echo(
        f"{manifest.metadata.name} is valid: {compute.world_size} ranks = {compute.nodes} nodes x "
        f"{compute.processes_per_node} processes; global batch {batch} packs = {compute.world_size} ranks x "
        f"{batch // compute.world_size}"
    )


@commands.command()
def plot(
    work_dir: Annotated[Path, typer.Argument(metavar="WORK_DIR", help="The folder of a run.")],
) -> None:
    """Draw the loss curve of a run, also while it trains."""
    folder = WorkFolder(work_dir)
    job = folder.job()
    rows = read_metrics(folder.storage())
    if not rows:
        raise Refusal(f"{work_dir}: no step was trained yet; wait for the first one")
    plot_loss(rows, folder.loss_curve, title=job.metadata.name)
    typer.echo(folder.loss_curve)


def _claim_folder(option: str) -> tuple[str, Path]:
    name, separator, folder = option.partition("=")
    if not separator or not name or not folder:
        raise Refusal(f"--claim {option}: write it as NAME=FOLDER")
    return name, Path(folder)


def _require_trainer() -> None:
    if importlib.util.find_spec("torch") is None:
        raise Refusal("the trainer is not installed, and a job needs it here; pip install 'sftjob[trainer]'")


def app() -> None:
    try:
        commands()
    except SpecError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(ExitCode.CONFIGURATION)
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n")
        sys.exit(refusal.code)
