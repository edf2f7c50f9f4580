"""The `sft` command. Each command reads its arguments, calls one function and exits with what that returns."""

import asyncio
import errno
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from sft_cli.display import Output
from sft_cli.flags import MAP_SHOWN, flags, label, map_of, place, spec_of, with_flags
from sft_cli.inspect_data import inspect_data
from sft_cli.ledger import read_ledger
from sft_cli.manifest_file import read_document, read_manifest
from sft_cli.memory_table import memory_lines
from sft_cli.places import unusable_here
from sft_cli.plot import plot_metrics
from sft_cli.refusal import Refusal
from sft_cli.run import run_command, run_job, tell_result
from sft_cli.sentences import arithmetic, doubts
from sft_cli.work_folder import WorkFolder
from sft_operator.local.claims import Claims
from sft_operator.local.lock import Locked, locked
from sftjob.failure import ExitCode
from sftjob.inspection import InspectionTask
from sftjob.job import Manifest, parse_manifest
from sftjob.names import API_VERSION
from sftjob.options import Overlong, RowFormat
from sftjob.problems import SpecError, problems_of
from sftjob.sources import DatasetSpec
from sftjob.status import Phase
from sftjob.yaml_text import yaml_text

commands = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Fine-tune language models: SFTJobs on this machine."
)

data_commands = typer.Typer(no_args_is_help=True, help="Look at data before a job does.")
commands.add_typer(data_commands, name="data")

ManifestFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="A YAML file with one SFTJob.")]
WorkDir = Annotated[Path | None, typer.Option(help="The run's own folder.", show_default="runs/<name>")]
ClaimFolders = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FOLDER", help="What pvc://NAME/ stands for.", show_default="claims/<NAME>"),
]


@commands.command()
def run(file: ManifestFile, work_dir: WorkDir = None, claim: ClaimFolders = None) -> None:
    """Run a job as processes of this machine; go on with it where an earlier run was stopped."""
    manifest = read_manifest(file)
    folder = WorkFolder(work_dir or Path("runs") / manifest.metadata.name)
    _run(manifest, folder, claim, again=run_command(file, folder))


@commands.command()
@with_flags
def train(
    file: Annotated[
        Path | None, typer.Argument(metavar="[JOB.yaml]", help="What the flags don't say.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's.", show_default="the file's, or of --output")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the job, its steps and its memory.")] = False,
    work_dir: WorkDir = None,
    claim: ClaimFolders = None,
    **given: str | list[str] | None,
) -> None:
    """Train from flags, with or without a file: the job that `sft run` would run.

    Every field is a flag, but for `compute.env` and some that only clusters heed.
    """
    document = read_document(file) if file else {"apiVersion": API_VERSION, "kind": "SFTJob"}
    spec, metadata = ((document.get(key) or {}) if isinstance(document, dict) else None for key in ("spec", "metadata"))
    if isinstance(spec, dict) and isinstance(metadata, dict):
        values = {flag.path: value for flag in flags() if (value := given[flag.parameter]) not in (None, [])}
        outputs = values.get("output.uri")
        own_name = metadata.get("name") or label(Path(outputs[0]).name if outputs else "", fallback="train")
        document |= {"spec": spec_of(values, base=spec), "metadata": metadata | {"name": name or own_name}}
        if file is None:
            _keep_script_in_its_run(document["spec"], work_dir or Path("runs") / str(name or own_name))
    manifest = parse_manifest(document)
    if dry_run:
        job = manifest.to_json_dict()
        if "namespace" not in document["metadata"]:
            # `kubectl apply --namespace` would refuse another one.
            del job["metadata"]["namespace"]
        typer.echo(yaml_text(job), nl=False)
        claims = Claims(Path("claims"), dict(_claim_folder(option) for option in claim or []), scratch=Path())
        unusable = [f"{path}: {sentence}" for path, sentence in unusable_here(manifest.spec, claims).items()]
        said = (*unusable, *doubts(manifest.spec), arithmetic(manifest.spec))
        for line in (*said, *memory_lines(manifest.spec, claims)):
            typer.echo(f"# {line}")
        return
    folder = WorkFolder(work_dir or Path("runs") / manifest.metadata.name)
    _run(manifest, folder, claim, again=shlex.join(["sft", *sys.argv[1:]]))


def _keep_script_in_its_run(spec: dict[str, Any], work_dir: Path) -> None:
    """A script that names no output has nothing to put its storage beside."""
    if spec.get("script") and "output" not in spec:
        section = spec.setdefault("checkpoint", {})
        section.setdefault("storage", place(str(work_dir / "checkpoints")))


def _run(manifest: Manifest, folder: WorkFolder, claim: list[str] | None, *, again: str) -> None:
    _require_trainer()
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{folder.path}: {error.strerror}; name another --work-dir", code=ExitCode.STORAGE) from None
    console = Output()
    try:
        with locked(folder.run_lock):
            job = folder.open(manifest, claim_folders=dict(_claim_folder(option) for option in claim or []))
            if job.status.phase is Phase.SUCCEEDED:
                console.print(f"{folder.path}: this run has ended already", markup=False, highlight=False)
                raise typer.Exit(tell_result(folder, console))
            if job.status.phase is Phase.FAILED:
                console.print(f"{folder.path}: this run has failed; trying again", markup=False, highlight=False)
            raise typer.Exit(asyncio.run(run_job(folder, console, again=again)))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise Refusal(
            f"{folder.path}: {error.strerror}; make room, and go on with: {again}", code=ExitCode.STORAGE
        ) from None
    except Locked:
        raise Refusal(f"{folder.path}: another `sft` is at work in this folder; wait for it or stop it") from None


@commands.command()
def validate(file: ManifestFile) -> None:
    """Check a job's file: every problem with its path, value and remedy."""
    manifest = read_manifest(file)
    typer.echo(f"{manifest.metadata.name} is valid: {arithmetic(manifest.spec)}")
    for doubt in doubts(manifest.spec):
        typer.echo(doubt, err=True)


@data_commands.command("inspect")
def inspect_file(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help=escape("A file of rows, a folder of such files, or hf://datasets/<owner>/<name>[/<path>]."),
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="FOLDER", help="The model that it is for, or its tokenizer; or hf://<owner>/<name>.")
    ],
    revision: Annotated[str | None, typer.Option(help="Of an hf:// dataset: branch, tag or commit.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a whole hf:// dataset: its configuration.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a whole hf:// dataset.", show_default="train")] = None,
    format_: Annotated[
        str, typer.Option("--format", metavar=" | ".join(get_args(RowFormat)), help="How its rows are written.")
    ] = "auto",
    columns: Annotated[
        str | None,
        typer.Option(metavar=MAP_SHOWN, help="Its rows' names for a format's fields: see spec.data.datasets."),
    ] = None,
    chat_template: Annotated[str | None, typer.Option(help="In place of the tokenizer's: see spec.data.")] = None,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens that a sample may have.")] = 4096,
    overlong: Annotated[
        str, typer.Option(metavar=" | ".join(get_args(Overlong)), help="What happens to a longer one.")
    ] = "truncate",
    bad_line_budget: Annotated[int, typer.Option(min=0, help="Rows that may be skipped because they are bad.")] = 0,
    samples: Annotated[int, typer.Option(min=0, help="How many to show, from the first on.")] = 3,
) -> None:
    """Tell what a file becomes, without training: counts, and samples with what is trained of them."""
    _require_trainer()
    try:
        task = InspectionTask(
            file=file,
            revision=revision,
            config=config,
            split=split,
            model=model,
            format=format_,
            columns=map_of(columns or "", flag="--columns"),
            bad_line_budget=bad_line_budget,
            chat_template=chat_template,
            max_length=max_length,
            overlong=overlong,
            samples=samples,
        )
    except ValidationError as error:
        raise SpecError(problems_of(error, InspectionTask)) from None
    try:
        _ = task.hub_dataset, task.hub_model
    except ValidationError as error:
        raise SpecError(problems_of(error, DatasetSpec)) from None
    inspect_data(task, Console())


@commands.command()
def plot(
    work_dir: Annotated[Path, typer.Argument(metavar="WORK_DIR", help="The folder of a run.")],
) -> None:
    """Draw the loss of a run, in training and in evaluation, and its learning rate; also while it trains."""
    folder = WorkFolder(work_dir)
    job, metrics = folder.job(), folder.metrics()
    if not metrics.rows:
        raise Refusal(f"{work_dir}: no step was trained yet; wait for the first one")
    plot_metrics(metrics, folder.loss_curve, title=job.metadata.name)
    typer.echo(folder.loss_curve)


@commands.command()
def ledger(
    storage: Annotated[
        Path,
        typer.Argument(metavar="STORAGE", help="Of a run's checkpoints: spec.checkpoint.storage; or the run's folder."),
    ],
) -> None:
    """Prove from what the ranks wrote down that each sample was trained once an epoch, whatever was killed."""
    folder = WorkFolder(storage)
    account = read_ledger(folder.storage() if folder.store.load() else storage)
    for line in [*account.epochs, *account.problems]:
        typer.echo(line)
    raise typer.Exit(1 if account.problems else 0)


def _claim_folder(option: str) -> tuple[str, Path]:
    name, separator, folder = option.partition("=")
    if not separator or not name or not folder:
        raise Refusal(f"--claim {option}: write it as NAME=FOLDER")
    return name, Path(folder)


def _require_trainer() -> None:
    if importlib.util.find_spec("torch") is None:
        raise Refusal(
            "the trainer is not installed, and a job needs it here; pip install '.[trainer]' where sftjob's source is"
        )


def app() -> None:
    try:
        commands()
    except SpecError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(ExitCode.CONFIGURATION)
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n")
        sys.exit(refusal.code)
