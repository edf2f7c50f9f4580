"""Which of several ends explains an attempt: pure, on what torchrun saw and what the ranks reported."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from sft_trainer.report import Report
from sftjob.failure import Reason, signal_name
from sftjob.progress import Stage
from sftjob.standstill import Standstill


@dataclass(frozen=True)
class Cause:
    reason: Reason
    message: str
    rank: int | None = None
    signal: int | None = None
    rank_exit_code: int | None = None
    standstill: Standstill | None = None


def hang(standstill: Standstill) -> Cause:
    """Of ranks that the launcher itself has ended. Who holds up all nodes is the operator's to say."""
    return Cause(
        Reason.HANG,
        f"no rank went on for {standstill.seconds} s; where that is just long, set "
        "spec.runPolicy.progressDeadlineSeconds",
        rank=standstill.rank,
        standstill=standstill,
    )


def stage_failure(stage: Stage, code: int) -> Cause:
    """Of a process that ended without a word before there were ranks; `code` is negative for a signal, or, of what
    torchrun's process has forked, 128 and the signal."""
    ended_by = -code if code < 0 else code - 128
    if ended_by > 0:
        return Cause(Reason.LAUNCHER_FAILED, f"stage {stage} was ended by {signal_name(ended_by)}", signal=ended_by)
    return Cause(Reason.LAUNCHER_FAILED, f"stage {stage} ended with exit code {code}")


def cause_of_failure(
    *, exit_codes: Mapping[int, int], reports: Mapping[int, Report], stopping: bool, torchrun_code: int
) -> Cause:
    """By signal, never by time: timestamps are whole seconds and tie, and a killed rank takes the others with it.

    In this order: a rank's own word for a fault that another attempt would meet too; that this launcher was told to
    stop, whoever died meanwhile; a rank killed from outside (SIGTERM aside, which torchrun itself sends); a rank's
    other word; an exit code; what became of torchrun itself.
    """
    told = {rank: report for rank, report in reports.items() if report.reason is not Reason.SUCCEEDED}
    for rank, report in sorted(told.items()):
        if report.reason not in (Reason.RANK_FAILED, Reason.PREEMPTED):
            return Cause(report.reason, report.message, rank=rank)
    preempted = [report.message for report in told.values() if report.reason is Reason.PREEMPTED]
    if stopping:
        return Cause(Reason.PREEMPTED, (preempted or ["stopped before the ranks could say what they saved"])[0])
    for rank, code in sorted(exit_codes.items()):
        if code < 0 and -code != signal.SIGTERM:
            return Cause(Reason.RANK_KILLED, f"rank {rank} was ended by {signal_name(-code)}", rank=rank, signal=-code)
    if preempted and len(preempted) == len(told):
        return Cause(Reason.PREEMPTED, preempted[0])
    for rank, report in sorted(told.items(), key=lambda item: (item[1].peer_lost, item[0])):
        if report.reason is Reason.RANK_FAILED:
            return Cause(Reason.RANK_FAILED, report.message, rank=rank, rank_exit_code=exit_codes.get(rank))
    for rank, code in sorted(exit_codes.items()):
        return Cause(
            Reason.RANK_FAILED,
            f"rank {rank} ended with exit code {code} and told no cause",
            rank=rank,
            rank_exit_code=code,
        )
    if torchrun_code < 0:
        message = f"torchrun was ended by {signal_name(-torchrun_code)}"
        return Cause(Reason.TORCHRUN_LOST, message, signal=-torchrun_code)
    return Cause(Reason.TORCHRUN_LOST, f"torchrun ended with exit code {torchrun_code} and told no cause")
