"""GPU time that a job has used, and what of it was in vain. Called by `decide` when an attempt's end is recorded."""

from sftjob.compute import ComputeSpec
from sftjob.failure import Reason
from sftjob.status import AttemptKind, AttemptRecord, Usage


def used(before: Usage | None, record: AttemptRecord, compute: ComputeSpec, *, running_seconds: int) -> Usage | None:
    """With this attempt's time added; None where the job asks for no GPUs."""
    gpus = compute.nodes * compute.resources.gpus
    if not gpus:
        return None
    if record.kind is AttemptKind.PREFLIGHT:
        return before
    before = before or Usage()
    return Usage(
        gpu_seconds=before.gpu_seconds + gpus * running_seconds,
        lost_gpu_seconds=before.lost_gpu_seconds + round(gpus * running_seconds * _lost_share(record)),
    )


def _lost_share(record: AttemptRecord) -> float:
    """Of the attempt's steps those that no checkpoint has."""
    if record.reason is Reason.SUCCEEDED:
        return 0.0
    done = (record.last_step or 0) - (record.resumed_from or 0)
    return (record.lost_steps or 0) / done if done > 0 else 1.0
