"""The prepare stage: one process a node, before any rank exists, so that no collective ever waits for it.

Reads, tokenises and packs the data into the cache, and looks at all that could refuse the run later: a bad file costs
seconds. Called by `sft_trainer.child`.
"""

import logging
from pathlib import Path

import torch

from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.datasets.shown import log_receipt, log_samples
from sft_trainer.estimate_memory import estimate
from sft_trainer.from_plan import run_options
from sft_trainer.launcher.resources import available_cpus
from sft_trainer.model import nf4
from sft_trainer.model.weight_files import weight_files
from sft_trainer.model.weights import tensor_shapes
from sft_trainer.progress import ProgressReporter
from sft_trainer.report import Report, write_report
from sft_trainer.run import RunOptions
from sft_trainer.task import RankTask
from sft_trainer.tracking.usable import refuse_unusable_trackers
from sft_trainer.train.memory import memory_line
from sft_trainer.train.vocabulary import refuse_unknown_tokens
from sftjob import names
from sftjob.devices import most_device_bytes
from sftjob.failure import JobFailure, Reason, exit_code
from sftjob.memory import MemoryTask
from sftjob.plan import LaunchPlan

log = logging.getLogger(__name__)

_MOST_PROCESSES_PER_CPU = 4
_MOST_WORKERS = 16
"""Each needs some 100 MB, which a pod of many CPUs may not have counted."""


def _prepare(plan: LaunchPlan, reporter: ProgressReporter, *, scratch: Path) -> Report:
    """Raises JobFailure for whatever a user has to mend before a rank can start."""
    _refuse_too_many_processes(plan)
    refuse_unusable_trackers(plan.spec.training.report_to, field="spec.training.reportTo")
    options = run_options(plan)
    if not _is_for_other_devices(plan):
        nf4.refuse_without_gpu(options.lora_cfg, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if plan.prepare_only:
        _refuse_what_fits_no_device(plan, options)
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
        log_samples(data, tokenizer_path=options.tokenizer_path, scratch=scratch)
    refuse_unknown_tokens(data, options)
    if receipt.packs < world:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"spec.compute: {world} ranks, but the data fills only {receipt.packs} packs of "
            f"{plan.spec.data.packing.max_length} tokens; use at most {receipt.packs} ranks, or shorter packs",
        )
    return Report(reason=Reason.SUCCEEDED, data=receipt)


def _is_for_other_devices(plan: LaunchPlan) -> bool:
    """It runs before the job's accelerators are asked for: what the machine here lacks says nothing."""
    return plan.prepare_only and bool(plan.spec.compute.resources.devices)


def _refuse_what_fits_no_device(plan: LaunchPlan, options: RunOptions) -> None:
    """Of the model what can be told without loading it: whether its files are whole, and what its ranks will hold.

    Whatever a pack's length is, weights, gradients and moments must fit; of the rest a rank that runs short halves
    what goes through the model at a time.
    """
    if options.load_from:
        tensor_shapes(weight_files(Path(options.load_from)))
    told = estimate(MemoryTask(spec=plan.spec, folder=options.load_from))
    log.info("%s", memory_line(told))
    most = most_device_bytes(plan.spec.compute)
    if most is not None and told.fixed > most:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"spec.compute: weights, gradients and moments of a rank take {told.fixed / 2**30:.1f} GiB (ranks: "
            f"{plan.spec.compute.world_size}), and a device that is asked for has {most / 2**30:.0f} GiB at most; use "
            "more ranks, larger devices, or spec.training.lora",
        )


def _refuse_too_many_processes(plan: LaunchPlan) -> None:
    processes = plan.spec.compute.processes_per_node
    if _is_for_other_devices(plan):
        # Of other devices than whole GPUs one can hold several processes, or several one.
        most, what = plan.spec.compute.resources.gpus or processes, "GPUs in spec.compute.resources.limits"
    elif torch.cuda.is_available():
        most, what = torch.cuda.device_count(), "GPUs of this node"
    else:
        most = max(1, round(available_cpus())) * _MOST_PROCESSES_PER_CPU
        what = "processes on this many CPUs of this node"
    if processes > most:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"spec.compute.processesPerNode: {processes} is more than the {most} {what}; use at most {most}",
        )


def prepare_stage(scratch: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s prepare %(message)s", datefmt="%H:%M:%S")
    reporter = ProgressReporter(scratch)
    try:
        report = _prepare(RankTask.read(scratch).plan, reporter, scratch=scratch)
    except JobFailure as failure:
        report = Report(reason=failure.reason, message=failure.message)
    finally:
        reporter.close()
    write_report(scratch, "prepare", report)
    return exit_code(report.reason)
