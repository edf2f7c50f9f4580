"""Draws a run's loss curve."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from sft_cli.metrics import Row


def plot_loss(rows: Sequence[Row], file: Path, *, title: str) -> None:
    """A PNG of loss over steps, with a line where a later attempt takes over."""
    # Imported where something is drawn, since it takes a second; without pyplot, which takes another.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=150)
    axes = FigureCanvasAgg(figure).figure.subplots()
    marker = "o" if len(rows) <= 60 else ""
    axes.plot([row.step for row in rows], [row.loss for row in rows], marker=marker, markersize=3, linewidth=1.5)
    for before, after in pairwise(rows):
        if after.attempt != before.attempt:
            boundary = (before.step + after.step) / 2
            axes.axvline(boundary, color="grey", linestyle="--", linewidth=1)
            axes.annotate(
                f" attempt {after.attempt}",
                (boundary, 0.98),
                xycoords=("data", "axes fraction"),
                verticalalignment="top",
                color="grey",
                fontsize=9,
            )
    axes.set_title(title)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (nats per trained token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=min(0, *(row.loss for row in rows)))
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(file)
