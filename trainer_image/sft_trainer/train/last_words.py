"""What a rank leaves behind when it ends: an exception and the state in, a report in the launcher's folder out.

Called by `rank`, and by a `Trainer` in a script that a launcher started.
"""

import traceback
from pathlib import Path

import torch.distributed as dist

from sft_trainer.report import Report, write_report
from sft_trainer.run import RunState
from sft_trainer.stop import StopSignal
from sft_trainer.train.accumulate import MEMORY_REMEDY, shortage_reason
from sft_trainer.train.stop import Preempted
from sft_trainer.train.world import this_rank
from sftjob.failure import JobFailure, Reason, storage_reason


def report_of(error: Exception, *, stop: StopSignal | None, state: RunState) -> Report:
    """`stop` is None where the rank did not listen yet."""
    match error:
        case Preempted():
            return Report(reason=Reason.PREEMPTED, message=str(error), saved=error.saved)
        case JobFailure():
            return Report(reason=error.reason, message=error.message)
        case OSError() if storage_reason(error) is Reason.STORAGE_FULL:
            return Report(reason=Reason.STORAGE_FULL, message=f"{error}; free some room there")
    shortage = shortage_reason(error)
    if shortage is not None:
        return Report(reason=shortage, message=f"{error}; {MEMORY_REMEDY}")
    if stop is not None and stop.received:  # another rank ended while this one waited for it
        saved = state.last_step == (state.saved_step or 0)
        return Report(reason=Reason.PREEMPTED, message=f"stopped by SIGTERM ({error})", saved=saved)
    message = "".join(traceback.format_exception_only(error)).strip()
    return Report(reason=Reason.RANK_FAILED, message=message, peer_lost=is_peer_loss(error))


def leave_report(scratch: Path, report: Report, *, state: RunState) -> None:
    rank, _ = this_rank()
    reached = {
        "resumed_from": state.resumed_from,
        "last_step": state.last_step,
        "saved_step": state.saved_step,
        "final_digest": state.final_digest,
    }
    write_report(scratch, f"rank-{rank}", report.model_copy(update=reached))


def is_peer_loss(error: BaseException) -> bool:
    """gloo tells a lost connection in a plain RuntimeError."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
