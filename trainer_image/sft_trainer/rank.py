"""One rank from the plan to its report: called by `sft_trainer.child` in each process that torchrun starts."""

import logging
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.from_plan import run_options, run_place
from sft_trainer.report import Report, write_report
from sft_trainer.run import RunState
from sft_trainer.stop import StopSignal
from sft_trainer.task import RankTask
from sft_trainer.train.loop import train
from sft_trainer.train.stop import Preempted
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
    report = report.model_copy(
        update={
            "resumed_from": state.resumed_from,
            "last_step": state.last_step,
            "saved_step": state.saved_step,
            "final_digest": state.final_digest,
        }
    )
    write_report(scratch, f"rank-{rank}", report)
    return exit_code(report.reason)


def _run(plan: LaunchPlan, scratch: Path, stop: StopSignal, state: RunState) -> Report:
    try:
        options = run_options(plan)
        data = prepare_data(
            options.dataloader_cfg,
            tokenizer_path=options.tokenizer_path,
            cache_dir=Path(plan.storage) / names.CACHE,
            seed=options.seed,
        )
        with open_world() as world:
            log.info("rank %d of %d on %s", world.rank, world.size, world.device)
            train(options, run_place(plan, scratch), data, world=world, stop=stop, state=state)
    except Preempted as preempted:
        return Report(reason=Reason.PREEMPTED, message=str(preempted), saved=preempted.saved)
    except JobFailure as failure:
        print(failure.message, file=sys.stderr)
        return Report(reason=failure.reason, message=failure.message)
    except torch.OutOfMemoryError as error:
        message = f"{error}; lower spec.data.packing.maxLength, or use more ranks"
        return Report(reason=Reason.GPU_OUT_OF_MEMORY, message=message)
    except Exception as error:
        if stop.received:  # another rank ended while this one waited for it
            saved = state.last_step == (state.saved_step or 0)
            return Report(reason=Reason.PREEMPTED, message=f"stopped by SIGTERM ({error})", saved=saved)
        traceback.print_exc()
        message = "".join(traceback.format_exception_only(error)).strip()
        return Report(reason=Reason.RANK_FAILED, message=message, peer_lost=_is_peer_loss(error))
    return Report(reason=Reason.SUCCEEDED)


def _is_peer_loss(error: Exception) -> bool:
    """gloo tells a lost connection in a plain RuntimeError."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
