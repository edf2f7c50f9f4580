"""Progress in words, and as the lines of a bar: used by the command line, and by a Trainer on a terminal of its own."""

import re

from sftjob.progress import Progress, Stage
from sftjob.words import counted, duration_in_words

_BAR_WIDTH = 32
_LEAST_BAR_WIDTH = 8
DONE, LEFT = "━", "─"
"""What a bar is made of."""


def stage_in_words(stage: Stage) -> str:
    """`PreparingData` as `preparing data`."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", stage.value).lower()


def headline(progress: Progress) -> str:
    """What is going on: `preparing data: 812 of 1319 rows`."""
    detail = f": {progress.detail}" if progress.detail else ""
    return f"{stage_in_words(progress.stage)}{detail}"


def training_figures(progress: Progress) -> list[str]:
    """Of the last step and evaluation, the most wanted first."""
    evaluated = ""
    if progress.eval_loss is not None and progress.best_eval_loss is not None:
        is_best = progress.eval_loss == progress.best_eval_loss
        lowest = "" if is_best else f" (lowest {progress.best_eval_loss:.3f}, step {progress.best_step})"
        evaluated = f"evaluation loss {progress.eval_loss:.3f}{lowest}"
    figures = [
        f"loss {progress.loss:.3f}" if progress.loss is not None else "",
        evaluated,
        f"lr {progress.learning_rate:.2e}" if progress.learning_rate is not None else "",
        f"grad norm {progress.grad_norm:.3g}" if progress.grad_norm is not None else "",
        f"{progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second is not None else "",
        f"MFU {progress.mfu:.0%}" if progress.mfu is not None else "",
        f"data wait {progress.data_wait:.0%}" if progress.data_wait is not None else "",
        f"packs in parts of {progress.micro_batch_tokens} tokens" if progress.micro_batch_tokens is not None else "",
        f"memory {progress.memory_bytes / 1e9:.1f} GB" if progress.memory_bytes is not None else "",
        f"{counted(progress.skipped_steps, 'step')} skipped" if progress.skipped_steps else "",
        f"saved step {progress.saved_step}" if progress.saved_step is not None else "",
    ]
    return [figure for figure in figures if figure]


def how_far(progress: Progress) -> str:
    """`step 420/1000`"""
    return f"step {progress.step}/{progress.total_steps}" if progress.total_steps else f"step {progress.step}"


def time_left(progress: Progress) -> str:
    return f"{duration_in_words(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""


def progress_line(progress: Progress) -> str:
    """All in one, for a log."""
    return ", ".join(part for part in (how_far(progress), *training_figures(progress), time_left(progress)) if part)


def progress_lines(first_words: str, progress: Progress | None, *, width: int) -> list[str]:
    """A bar, and the figures below it: no figure is cut, however narrow it is. Without it the words alone."""
    if progress is None:
        return [first_words]
    done = progress.step / progress.total_steps if progress.total_steps else 0
    percent = f"{done:.0%}" if progress.total_steps else ""
    beside = "  ".join(part for part in (how_far(progress), percent, time_left(progress)) if part)
    bar_width = min(_BAR_WIDTH, width - len(beside) - 4)
    bar = DONE * int(bar_width * done) + LEFT * (bar_width - int(bar_width * done))
    if width >= len(first_words) + len(beside) + _BAR_WIDTH + 8:
        first = [f"{first_words}  {bar}  {beside}"]
    else:
        # Without a bar where there is no room for one that says anything.
        first = [first_words, f"{bar}  {beside}" if bar_width >= _LEAST_BAR_WIDTH else beside]
    return [*first, *_filled(training_figures(progress), width=width)]


def _filled(figures: list[str], *, width: int) -> list[str]:
    """Joined by commas into as few lines as they need."""
    lines: list[str] = []
    for figure in figures:
        if lines and len(lines[-1]) + len(figure) + 2 < width:
            lines[-1] += f", {figure}"
        else:
            lines.append(figure)
    return lines
