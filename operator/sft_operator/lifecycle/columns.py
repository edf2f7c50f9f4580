"""A status as the columns of `kubectl get`: strings, for a column of type date shows nothing of the future.

Called by `decide` last.
"""

from sft_operator.lifecycle.report import progress_of_current
from sftjob.progress import Stage
from sftjob.status import Columns, Phase, SFTJobStatus


def columns(status: SFTJobStatus) -> Columns:
    progress, saved = status.progress, status.saved_step
    shown = Columns(saved="" if saved is None else str(saved))
    if progress is None:
        return shown
    steps = f"{progress.step}/{progress.total_steps}" if progress.total_steps else f"{progress.step or ''}"
    # What an earlier attempt was doing last is over.
    is_current = status.phase is Phase.RUNNING and progress_of_current(status) is not None
    is_training = is_current and progress.stage is Stage.TRAINING
    stage = progress.stage.value if is_current else ""
    return shown.model_copy(
        update={
            "progress": f"{stage} {steps}".strip(),
            "loss": "" if progress.loss is None else f"{progress.loss:.3f}",
            "tokens_per_second": "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:.0f}",
            "eta": duration(progress.eta_seconds) if is_training and progress.eta_seconds is not None else "",
        }
    )


def duration(seconds: int) -> str:
    """As kubectl has it: two units at most."""
    for unit, next_unit, size, part in (("d", "h", 86_400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size}{unit}{f'{rest}{next_unit}' if rest else ''}"
    return f"{seconds}s"
