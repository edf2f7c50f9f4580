"""One rank from the plan to its report: called by `sft_trainer.child` in each process that torchrun starts."""

import logging
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.from_plan import run_options, run_place
from sft_trainer.report import Report
from sft_trainer.run import RunState
from sft_trainer.stop import StopSignal
from sft_trainer.storage import fence
from sft_trainer.task import RankTask
from sft_trainer.train.last_words import leave_report, report_of
from sft_trainer.train.loop import train
from sft_trainer.train.world import open_world, this_rank
from sftjob import names
from sftjob.failure import JobFailure, Reason, exit_code
from sftjob.plan import LaunchPlan

log = logging.getLogger(__name__)
# Of every rank, so that one that dies without a word has left one.
log.setLevel(logging.INFO)


def rank_stage(scratch: Path, stop: StopSignal) -> int:
    """Leaves a report whatever happens; the exit code is that of its reason."""
    rank, _ = this_rank()
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    state = RunState()
    report = _run(RankTask.read(scratch).plan, scratch, stop, state)
    leave_report(scratch, report, state=state)
    return exit_code(report.reason)


def _base_revision(plan: LaunchPlan) -> str | None:
    """What the first attempt took from the hub: the repository may have gone on since."""
    load_from = plan.spec.model.load_from if plan.spec.model else None
    pins = fence.pins_before(plan) if load_from and load_from.uri.startswith(names.HUB) else None
    return pins[0].model_revision if pins else None


def _run(plan: LaunchPlan, scratch: Path, stop: StopSignal, state: RunState) -> Report:
    try:
        options = replace(run_options(plan), base_revision=_base_revision(plan))
        data = prepare_data(
            options.dataloader_cfg,
            tokenizer_path=options.tokenizer_path,
            cache_dir=Path(plan.storage) / names.CACHE,
            seed=options.seed,
        )
        with open_world(is_watched=True) as world:
            log.info("rank %d of %d on %s", world.rank, world.size, world.device)
            train(options, run_place(plan, scratch), data, world=world, stop=stop, state=state)
    except Exception as error:
        report = report_of(error, stop=stop, state=state)
        if isinstance(error, JobFailure):
            print(error.message, file=sys.stderr)
        elif report.reason is Reason.RANK_FAILED:
            traceback.print_exc()
        return report
    return Report(reason=Reason.SUCCEEDED)
