"""A `Trainer` in a job's own script: storage, outputs, grace period and progress are those of the launcher's plan.

Called by `Trainer.fit`. The launcher tells of itself by one variable, and publishes what is exported once the whole
script has ended well.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from sft_trainer.datasets.prepare import PreparedData, prepare_data
from sft_trainer.from_plan import run_place
from sft_trainer.progress import ProgressReporter
from sft_trainer.report import Report
from sft_trainer.run import RunOptions, RunPlace, RunState
from sft_trainer.stop import StopSignal
from sft_trainer.storage.exports import own_export, publish_own_export
from sft_trainer.task import RankTask
from sft_trainer.train.last_words import leave_report, report_of
from sft_trainer.train.loop import train
from sft_trainer.train.stop import Preempted
from sft_trainer.train.world import open_world, this_rank
from sftjob import names
from sftjob.failure import ExitCode, Reason
from sftjob.plan import LaunchPlan
from sftjob.progress import Stage

log = logging.getLogger(__name__)
# Of every rank, so that one that dies without a word has left one.
log.setLevel(logging.INFO)


@dataclass(frozen=True)
class Launch:
    plan: LaunchPlan
    scratch: Path


def this_launch() -> Launch | None:
    """None where no launcher has started this process."""
    scratch = os.environ.get(names.LAUNCH_VARIABLE)
    return Launch(RankTask.read(Path(scratch)).plan, Path(scratch)) if scratch else None


def fit_launched(launch: Launch, options: RunOptions, *, interval: int | None, keep_last: int | None) -> Path:
    """As `Trainer.fit`; `interval` and `keep_last` are the script's own word, None where it has none.

    The model's folder is, where the job has an output, the one that the launcher publishes later.
    """
    state, stop = RunState(), None
    place = _place(launch, interval=interval, keep_last=keep_last)
    try:
        data = _prepare(launch, options)
        # Until here there is nothing to save, and the signal ends the process as it ends any.
        stop = StopSignal()
        with open_world() as world:
            log.info("rank %d of %d on %s", world.rank, world.size, world.device)
            train(options, place, data, world=world, stop=stop, state=state)
            if not launch.plan.spec.outputs:
                world.from_first(lambda: publish_own_export(place.fence))
    except Exception as error:
        leave_report(launch.scratch, report_of(error, stop=stop, state=state), state=state)
        if isinstance(error, Preempted):
            raise SystemExit(ExitCode.PREEMPTED) from None
        raise
    leave_report(launch.scratch, Report(reason=Reason.SUCCEEDED, data=data.receipt), state=state)
    return place.export_folders[0] if launch.plan.spec.outputs else own_export(place.fence.storage)


def _place(launch: Launch, *, interval: int | None, keep_last: int | None) -> RunPlace:
    plan = launch.plan
    place = run_place(plan, launch.scratch)
    said = {"checkpoint_interval": interval, "keep_last": keep_last}
    for name, own in said.items():
        if own is not None and getattr(place, name) not in (None, own):
            log.warning("%s of the script is %d: the job's own %s does not count", name, own, getattr(place, name))
    place = replace(place, **{name: own for name, own in said.items() if own is not None})
    if plan.spec.outputs or own_export(place.fence.storage).exists():
        return place
    return replace(place, export_folders=[own_export(place.fence.storage, attempt=plan.attempt)])


def _prepare(launch: Launch, options: RunOptions) -> PreparedData:
    """On every rank, before any process group exists; the first one tells of it."""
    rank, _ = this_rank()
    reporter = ProgressReporter(launch.scratch) if rank == 0 else None

    def tell(detail: str | None) -> None:
        if reporter:
            reporter.report(stage=Stage.PREPARING_DATA, detail=detail)

    tell(None)
    try:
        return prepare_data(
            options.dataloader_cfg,
            tokenizer_path=options.tokenizer_path,
            cache_dir=Path(launch.plan.storage) / names.CACHE,
            seed=options.seed,
            on_detail=tell,
        )
    finally:
        if reporter:
            reporter.close()
