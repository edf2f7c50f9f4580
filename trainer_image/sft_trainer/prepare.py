"""The prepare stage: one process a node, before any rank exists, so that no collective ever waits for it.

Reads, tokenises and packs the data into the cache, and looks at all that could refuse the run later: a bad file costs
seconds. Called by `sft_trainer.child`.
"""

import logging
from pathlib import Path

import torch

from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.datasets.shown import log_receipt, log_samples
from sft_trainer.from_plan import run_options
from sft_trainer.launcher.resources import available_cpus
from sft_trainer.model import nf4
from sft_trainer.progress import ProgressReporter
from sft_trainer.report import Report, write_report
from sft_trainer.task import RankTask
from sft_trainer.tracking.usable import refuse_unusable_trackers
from sftjob import names
from sftjob.failure import JobFailure, Reason, exit_code
from sftjob.plan import LaunchPlan

_MOST_PROCESSES_PER_CPU = 4
_MOST_WORKERS = 16
"""Each needs some 100 MB, which a pod of many CPUs may not have counted."""


def _prepare(plan: LaunchPlan, reporter: ProgressReporter) -> Report:
    """Raises JobFailure for whatever a user has to mend before a rank can start."""
    _refuse_too_many_processes(plan)
    refuse_unusable_trackers(plan.spec.training.report_to, field="spec.training.reportTo")
    options = run_options(plan)
    nf4.refuse_without_gpu(options.lora_cfg, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    # Where memory ran out before, it may have been these that took it.
    workers = max(1, min(_MOST_WORKERS, int(available_cpus())) >> plan.shortages)
    data = prepare_data(
        options.dataloader_cfg.model_copy(update={"num_workers": workers}),
        tokenizer_path=options.tokenizer_path,
        cache_dir=Path(plan.storage) / names.CACHE,
        seed=options.seed,
        on_detail=lambda detail: reporter.report(detail=detail),
    )
    receipt, world = data.receipt, plan.spec.compute.world_size
    reporter.report(data=receipt)
    log_receipt(data)
    if plan.attempt == 1:
        log_samples(data, tokenizer_path=options.tokenizer_path)
    if receipt.packs < world:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"spec.compute: {world} ranks, but the data fills only {receipt.packs} packs of "
            f"{plan.spec.data.packing.max_length} tokens; use at most {receipt.packs} ranks, or shorter packs",
        )
    return Report(reason=Reason.SUCCEEDED, data=receipt)


def _refuse_too_many_processes(plan: LaunchPlan) -> None:
    processes = plan.spec.compute.processes_per_node
    if torch.cuda.is_available():
        most, what = torch.cuda.device_count(), "GPUs"
    else:
        most, what = max(1, round(available_cpus())) * _MOST_PROCESSES_PER_CPU, "processes on this many CPUs"
    if processes > most:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"spec.compute.processesPerNode: {processes} is more than the {most} {what} of this node; "
            f"use at most {most}",
        )


def prepare_stage(scratch: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s prepare %(message)s", datefmt="%H:%M:%S")
    reporter = ProgressReporter(scratch)
    try:
        report = _prepare(RankTask.read(scratch).plan, reporter)
    except JobFailure as failure:
        report = Report(reason=failure.reason, message=failure.message)
    finally:
        reporter.close()
    write_report(scratch, "prepare", report)
    return exit_code(report.reason)
