"""How long it takes to train again after a failure, part by part: a status and what is seen now in, the parts out.

Called by `decide` when an attempt's end is recorded, and in every pass while one lives.
"""

from datetime import datetime

from sft_operator.lifecycle.report import progress_of_current
from sftjob.progress import Stage
from sftjob.status import AttemptRecord, Phase, Recovery, SFTJobStatus


def recovery_after(record: AttemptRecord, *, noticed_at: datetime | None, now: datetime) -> Recovery:
    """Of the attempt to come, at the moment that the end of this one is recorded."""
    noticed_at = noticed_at or now
    return Recovery(
        # The launcher's clock may be ahead.
        detect_seconds=max(0, _seconds(record.ended_at, noticed_at)),
        clean_up_seconds=_seconds(noticed_at, now),
        since=now,
    )


def recovered_so_far(status: SFTJobStatus, now: datetime) -> Recovery | None:
    """Of the current attempt: a part ends in the first pass that sees it over."""
    recovery, progress = status.attempts.recovery, progress_of_current(status)
    if recovery is None:
        return None
    has_trained = progress is not None and progress.step > (progress.resumed_from or 0)
    is_training = has_trained or (progress is not None and progress.stage is Stage.TRAINING)
    for part, is_over in (
        ("start_seconds", status.phase is Phase.RUNNING),
        ("load_seconds", is_training),
        ("first_step_seconds", has_trained),
    ):
        if getattr(recovery, part) is None:
            if recovery.since is None or not is_over:
                break
            recovery = recovery.model_copy(update={part: _seconds(recovery.since, now), "since": now})
    return recovery


def _seconds(begin: datetime, end: datetime) -> int:
    return round((end - begin).total_seconds())
