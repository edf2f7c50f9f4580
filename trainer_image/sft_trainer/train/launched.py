"""A `Trainer` in a job's own script: storage, outputs, grace period and progress are those of the launcher's plan.

Called by `Trainer.fit`. The launcher tells of itself by one variable, and publishes what is exported once the whole
script has ended well.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft_trainer.datasets.prepare import PreparedData, prepare_data
from sft_trainer.datasets.shown import log_receipt, log_samples
from sft_trainer.from_plan import run_place
from sft_trainer.marks import Marker
from sft_trainer.model.config import trained_config
from sft_trainer.progress import ProgressReporter
from sft_trainer.report import Report
from sft_trainer.run import RunOptions, RunPlace, RunState
from sft_trainer.stop import StopSignal
from sft_trainer.task import RankTask
from sft_trainer.tracking.usable import refuse_unusable_trackers
from sft_trainer.train.last_words import leave_report, report_of
from sft_trainer.train.loop import train
from sft_trainer.train.own_exports import missing_own_exports, own_export, publish_own_exports
from sft_trainer.train.stop import Preempted
from sft_trainer.train.world import open_world, this_rank
from sftjob import names
from sftjob.failure import ExitCode, JobFailure, Reason
from sftjob.options import SaveMode, Tracker
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


def fit_launched(
    launch: Launch,
    options: RunOptions,
    *,
    interval: int | None,
    keep_last: int | None,
    save_mode: SaveMode | None,
    report_to: Sequence[Tracker],
) -> Path:
    """As `Trainer.fit`; `interval`, `keep_last` and `save_mode` are the script's own word, None where it has none.

    The model's folder is, where the job has an output, the one that the launcher publishes later.
    """
    state, stop = RunState(), None
    said = {"checkpoint_interval": interval, "keep_last": keep_last, "save_mode": save_mode}
    place = _place(launch, options, said=said)
    place = replace(place, tracking=replace(place.tracking, report_to=report_to))
    try:
        refuse_unusable_trackers(report_to, field="report_to of the script's Trainer")
        _refuse_adapter_without_lora(launch.plan, options)
        trained_config(options.model_cfg, load_from=options.load_from)
        data = _prepare(launch, options)
        # Until here there is nothing to save, and the signal ends the process as it ends any.
        stop = StopSignal()
        with open_world(is_watched=True) as world:
            log.info("rank %d of %d on %s", world.rank, world.size, world.device)
            train(options, place, data, world=world, stop=stop, state=state)
            if not launch.plan.spec.outputs:
                world.from_first(lambda: publish_own_exports(place))
    except Exception as error:
        leave_report(launch.scratch, report_of(error, stop=stop, state=state), state=state)
        if isinstance(error, Preempted):
            raise SystemExit(ExitCode.PREEMPTED) from None
        if stop is not None:
            stop.give_back()
        raise
    finally:
        # What the script does next, nobody here knows.
        Marker(launch.scratch, this_rank()[0]).mark(Stage.RUNNING_SCRIPT)
    leave_report(launch.scratch, Report(reason=Reason.SUCCEEDED, data=data.receipt), state=state)
    stop.close()
    return place.exports[0].folder if launch.plan.spec.outputs else own_export(place.fence.storage)


def _refuse_adapter_without_lora(plan: LaunchPlan, options: RunOptions) -> None:
    for index, output in enumerate(plan.spec.outputs):
        if output.format == "adapter" and options.lora_cfg is None:
            raise JobFailure(
                Reason.INVALID_CONFIGURATION,
                f"spec.output[{index}].format: adapter, but the script's Trainer has no lora_cfg, which makes one; add "
                "it, or use the format hf",
            )


def _place(launch: Launch, options: RunOptions, *, said: dict[str, Any]) -> RunPlace:
    """The plan's, but for what the script has said itself."""
    plan = launch.plan
    place = run_place(plan, launch.scratch)
    for name, own in said.items():
        if own is not None and getattr(place, name) not in (None, own):
            log.warning("%s of the script is %s: the job's own %s does not count", name, own, getattr(place, name))
    place = replace(place, **{name: own for name, own in said.items() if own is not None})
    return place if plan.spec.outputs else replace(place, exports=missing_own_exports(options, place.fence))


def _prepare(launch: Launch, options: RunOptions) -> PreparedData:
    """On every rank, before any process group exists; the first one tells of it."""
    rank, _ = this_rank()
    reporter = ProgressReporter(launch.scratch) if rank == 0 else None
    marker = Marker(launch.scratch, rank)
    marker.mark(Stage.PREPARING_DATA)

    def tell(detail: str | None) -> None:
        marker.mark(alone=True)
        if reporter:
            reporter.report(stage=Stage.PREPARING_DATA, detail=detail)

    tell(None)
    try:
        data = prepare_data(
            options.dataloader_cfg,
            tokenizer_path=options.tokenizer_path,
            cache_dir=Path(launch.plan.storage) / names.CACHE,
            seed=options.seed,
            on_detail=tell,
        )
        if reporter:
            reporter.report(data=data.receipt)
            log_receipt(data)
            if launch.plan.attempt == 1:
                log_samples(data, tokenizer_path=options.tokenizer_path, scratch=launch.scratch)
        return data
    finally:
        if reporter:
            reporter.close()
