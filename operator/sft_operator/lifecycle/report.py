"""What an attempt tells about itself, taken into the status. Called by `decide`; never changes the phase."""

from sft_operator.lifecycle.cause import with_words_of_storage
from sftjob.failure import BROUGHT_ABOUT, Reason
from sftjob.outcome import Outcome
from sftjob.progress import EndBefore, Progress
from sftjob.status import AttemptRecord, AttemptsStatus, SFTJobStatus

COALESCE_SECONDS = 10
"""A report that only moves numbers is written this often: the status costs its store a write, whoever watches."""


def with_progress(status: SFTJobStatus, progress: Progress | None) -> SFTJobStatus:
    if progress is None or not _is_acceptable(status, progress):
        return status
    status, progress = _with_own_places(status, progress)
    before = status.progress
    if before is not None and not _tells_more(before, progress):
        return status
    return status.model_copy(update={"progress": progress})


def with_last_words(status: SFTJobStatus, outcome: Outcome | None) -> SFTJobStatus:
    """`outcome` is node 0's: it alone knows of data and artifacts."""
    if outcome is None:
        return status
    update: dict[str, object] = {}
    if outcome.progress is not None and _is_acceptable(status, outcome.progress):
        status, update["progress"] = _with_own_places(status, outcome.progress)
    # A termination message may have room for the sums alone, which the reports have told in full.
    if outcome.data is not None and (status.data is None or status.data.shortened() != outcome.data):
        update["data"] = outcome.data
    if outcome.artifacts:
        update["artifacts"] = outcome.artifacts
    return status.model_copy(update=update)


def _with_own_places(status: SFTJobStatus, progress: Progress) -> tuple[SFTJobStatus, Progress]:
    """What has a place of its own in the status: what later attempts don't tell any more still holds."""
    told: dict[str, object] = {
        name: value for name in ("resolved", "data") if (value := getattr(progress, name)) is not None
    }
    if progress.end_before is not None:
        told["attempts"] = _with_end(status.attempts, progress.end_before)
    without = dict.fromkeys(("resolved", "data", "end_before"))
    return status.model_copy(update=told), progress.model_copy(update=without)


def _with_end(attempts: AttemptsStatus, end: EndBefore) -> AttemptsStatus:
    """Of an attempt that nobody saw end, or not all of, what its launchers left in storage. What it was counted as
    stays."""
    history = [
        with_words_of_storage(record, end) if record.number == end.attempt and _is_told_better(record, end) else record
        for record in attempts.history
    ]
    return attempts.model_copy(update={"history": history})


def _is_told_better(record: AttemptRecord, end: EndBefore) -> bool:
    if record.reason is Reason.LAUNCHER_LOST:
        return True
    # Ranks end so as well where another node's was killed, and nobody may have been there to hear that node.
    return record.reason is Reason.RANK_FAILED and end.reason not in BROUGHT_ABOUT


def progress_of_current(status: SFTJobStatus) -> Progress | None:
    progress = status.progress
    return progress if progress is not None and progress.attempt == status.attempts.current else None


def _is_acceptable(status: SFTJobStatus, progress: Progress) -> bool:
    """Of the current attempt, and no step backwards within it."""
    if progress.attempt != status.attempts.current:
        return False
    before = progress_of_current(status)
    return before is None or (progress.step, progress.reported_at) >= (before.step, before.reported_at)


def _tells_more(before: Progress, after: Progress) -> bool:
    def shape(report: Progress) -> tuple[object, ...]:
        has_trained = report.step > (report.resumed_from or 0)
        return (
            report.attempt,
            report.stage,
            has_trained,
            report.saved_step,
            report.resumed_from,
            report.skipped_checkpoints,
        )

    # A pod's clock may have been put back, by whatever much.
    age = abs((after.reported_at - before.reported_at).total_seconds())
    return shape(after) != shape(before) or age >= COALESCE_SECONDS
