"""Draws a run's curves: the loss of training and of evaluation above, the learning rate below."""

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sft_cli.metrics import Metrics, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRAINING, _EVALUATION, _SKIPPED, _QUIET = "#2563eb", "#c2410c", "#dc2626", "#6b7280"
_MOST_MARKED = 60
"""Steps that are told apart by a dot; more make a line."""
_MOST_RAW = 200
"""Steps above which the single ones move into the background, behind their running mean."""
_MOST_LABELLED = 12
"""Attempts whose numbers have room."""


def plot_metrics(metrics: Metrics, file: Path, *, title: str) -> None:
    """A PNG. Attempts are one curve, with a line where the next one takes over; skipped steps are crosses below."""
    # Imported where something is drawn, since it takes a second; without pyplot, which takes another.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = metrics.rows
    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    has_rates = any(row.lr is not None for row in rows)
    panels = FigureCanvasAgg(figure).figure.subplots(
        2 if has_rates else 1, 1, sharex=True, squeeze=False, height_ratios=[4, 1] if has_rates else None
    )[:, 0]
    _draw_losses(panels[0], metrics)
    panels[0].set_title(title, loc="left", fontweight="bold")
    if has_rates:
        rated = [row for row in rows if row.lr is not None]
        panels[1].plot([row.step for row in rated], [row.lr for row in rated], color=_QUIET, linewidth=1.5)
        panels[1].set_ylabel("learning rate")
        panels[1].set_ylim(bottom=0)
        panels[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for axes in panels:
        _draw_attempts(axes, rows)
        axes.grid(visible=True, axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("optimiser step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    _number_attempts(panels[0], rows)
    figure.savefig(file)


def _draw_losses(axes: "Axes", metrics: Metrics) -> None:
    rows = metrics.rows
    steps, losses = [row.step for row in rows], [row.loss for row in rows]
    if len(rows) > _MOST_RAW:
        axes.plot(steps, losses, color=_TRAINING, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _running_mean(losses), color=_TRAINING, linewidth=1.8, label="training, running mean")
    else:
        marker = "o" if len(rows) <= _MOST_MARKED else ""
        axes.plot(steps, losses, color=_TRAINING, marker=marker, markersize=3, linewidth=1.5, label="training")
    evaluated = metrics.evaluations
    if evaluated:
        marker = "o" if len(evaluated) <= _MOST_MARKED else ""
        axes.plot(
            [one.step for one in evaluated],
            [one.loss for one in evaluated],
            color=_EVALUATION,
            marker=marker,
            markersize=4.5,
            linewidth=1.5,
            label="evaluation",
        )
    if metrics.best:
        best = metrics.best
        axes.plot(
            best.step,
            best.loss,
            color=_EVALUATION,
            marker="*",
            markersize=16,
            markeredgecolor="white",
            linestyle="",
            zorder=5,
            label=f"lowest: {best.loss:.3f} after step {best.step}",
        )
    skipped = _skipped(rows)
    if skipped:
        # At the foot of the panel: their loss may be no number.
        axes.plot(
            skipped,
            [0.02] * len(skipped),
            color=_SKIPPED,
            marker="x",
            markersize=6,
            markeredgewidth=1.8,
            linestyle="",
            transform=axes.get_xaxis_transform(),
            label=f"skipped: {len(skipped)} {'step' if len(skipped) == 1 else 'steps'}",
        )
    axes.set_ylabel("loss (nats per trained token)")
    finite = [loss for loss in losses if math.isfinite(loss)]
    axes.set_ylim(bottom=min(0, *finite, *(one.loss for one in evaluated), 0))
    if evaluated or skipped or len(rows) > _MOST_RAW:
        axes.legend(frameon=False)


def _skipped(rows: list[Row]) -> list[int]:
    """Their count is the run's: where it has grown since the step before, this one was skipped."""
    before = 0
    steps = []
    for row in rows:
        if row.skipped_steps > before:
            steps.append(row.step)
        before = row.skipped_steps
    return steps


def _running_mean(losses: list[float]) -> list[float]:
    """Of a twentieth of the run around each step, less at both ends; without what is no number."""
    half = max(1, len(losses) // 40)
    sums, counts = [0.0], [0]
    for loss in losses:
        is_number = math.isfinite(loss)
        sums.append(sums[-1] + (loss if is_number else 0.0))
        counts.append(counts[-1] + is_number)
    means = []
    for index in range(len(losses)):
        reach = min(half, index, len(losses) - 1 - index)
        first, end = index - reach, index + reach + 1
        count = counts[end] - counts[first]
        means.append((sums[end] - sums[first]) / count if count else math.nan)
    return means


def _boundaries(rows: list[Row]) -> list[tuple[float, int]]:
    """Between which steps another attempt took over, and which."""
    pairs = pairwise(rows)
    return [
        ((before.step + after.step) / 2, after.attempt) for before, after in pairs if after.attempt != before.attempt
    ]


def _draw_attempts(axes: "Axes", rows: list[Row]) -> None:
    for boundary, _ in _boundaries(rows):
        axes.axvline(boundary, color=_QUIET, linestyle=(0, (4, 3)), linewidth=0.9, alpha=0.7)


def _number_attempts(axes: "Axes", rows: list[Row]) -> None:
    boundaries = _boundaries(rows)
    for boundary, attempt in boundaries if len(boundaries) <= _MOST_LABELLED else []:
        axes.annotate(
            f"attempt {attempt}",
            (boundary, 1.0),
            xytext=(3, -2),
            textcoords="offset points",
            xycoords=("data", "axes fraction"),
            verticalalignment="top",
            rotation=90,
            color=_QUIET,
            fontsize=8,
        )
