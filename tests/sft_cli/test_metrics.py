"""Metrics of several attempts as one curve, and its picture."""

import json
import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sft_cli.metrics import Evaluation, Metrics, Row, read_metrics
from sft_cli.plot import plot_metrics


def write(storage: Path, attempt: int, *steps: int, torn: str = "") -> Path:
    file = storage / "attempts" / str(attempt) / "metrics.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"step": step, "loss": step + attempt / 10}) for step in steps]
    file.write_text("".join(f"{row}\n" for row in rows) + torn)
    return file


def test_the_highest_attempt_of_a_step_counts(tmp_path: Path) -> None:
    write(tmp_path, 9, 1, 2, 3, 4)
    write(tmp_path, 11, 3)
    write(tmp_path, 10, 2, 3)
    assert read_metrics(tmp_path).rows == [Row(1, 9, 1.9), Row(2, 10, 3.0), Row(3, 11, 4.1), Row(4, 9, 4.9)]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 1, 1, torn='{"step": 2, "lo')
    assert read_metrics(tmp_path).rows == [Row(1, 1, 1.1)]


def test_a_broken_line_within_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, 1, 1, torn='{"step": 2}\n')
    with pytest.raises(ValueError, match=f"{file}:2: not a line of metrics"):
        read_metrics(tmp_path)


def test_a_skipped_steps_loss_may_be_no_number(tmp_path: Path) -> None:
    write(tmp_path, 1, 1, torn='{"step": 2, "loss": null, "skipped_steps": 1}\n')
    first, second = read_metrics(tmp_path).rows
    assert first == Row(1, 1, 1.1)
    assert (second.step, math.isnan(second.loss), second.skipped_steps) == (2, True, 1)


def test_an_evaluation_counts_as_the_newest_attempt_found_it_and_the_lowest_is_the_best(tmp_path: Path) -> None:
    for attempt, told in ((1, {2: 0.75, 4: 0.5, 6: 0.25}), (2, {6: 0.5, 8: 0.625})):
        lines = [json.dumps({"step": step, "eval_loss": loss, "best_step": 2}) for step, loss in told.items()]
        write(tmp_path, attempt, torn="".join(line + "\n" for line in lines))
    metrics = read_metrics(tmp_path)
    assert metrics.evaluations == [Evaluation(2, 0.75), Evaluation(4, 0.5), Evaluation(6, 0.5), Evaluation(8, 0.625)]
    assert metrics.best == Evaluation(4, 0.5)


def test_a_run_without_steps_has_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == Metrics([], [])


def drawn(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, file: Path
) -> tuple[dict[str, list[tuple[float, float]]], list[str]]:
    """Points by what the legend says of them, learning rates besides, and the texts in the panels."""
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *rest: [figures.append(figure), savefig(figure, *rest)])
    plot_metrics(metrics, file, title="tiny")
    assert file.read_bytes().startswith(b"\x89PNG")
    losses, *others = figures[0].axes
    lines = {line.get_label(): [tuple(point) for point in line.get_xydata()] for line in losses.lines}
    for axes in others:
        lines[axes.get_ylabel()] = [tuple(point) for point in axes.lines[0].get_xydata()]
    return lines, [text.get_text() for text in losses.texts]


def test_a_picture_shows_losses_the_best_evaluation_skipped_steps_and_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row(1, 1, 4.0, 1e-4, 0), Row(2, 1, math.nan, 2e-4, 1), Row(3, 2, 2.0, 1e-4, 1), Row(4, 2, 1.0, 0.0, 1)]
    metrics = Metrics(rows, [Evaluation(2, 2.5), Evaluation(3, 1.5), Evaluation(4, 1.75)])
    lines, texts = drawn(metrics, monkeypatch, tmp_path / "loss.png")
    assert [point for point in lines["training"] if not math.isnan(point[1])] == [(1, 4.0), (3, 2.0), (4, 1.0)]
    assert lines["evaluation"] == [(2, 2.5), (3, 1.5), (4, 1.75)]
    assert lines["lowest: 1.500 after step 3"] == [(3, 1.5)]
    assert [step for step, _ in lines["skipped: 1 step"]] == [2]
    assert lines["learning rate"] == [(1, 1e-4), (2, 2e-4), (3, 1e-4), (4, 0.0)]
    assert texts == ["attempt 2"]


def test_of_many_steps_the_running_mean_is_shown_which_neither_lags_nor_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row(step, 1, 500.0 - step if step != 250 else math.nan) for step in range(1, 401)]
    lines, _ = drawn(Metrics(rows, []), monkeypatch, tmp_path / "loss.png")
    mean = dict(lines["training, running mean"])
    assert [mean[step] for step in (1, 2, 200, 250, 400)] == [499.0, 498.0, 300.0, 250.0, 100.0]


def test_one_step_alone_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, _ = drawn(Metrics([Row(1, 1, 2.0)], []), monkeypatch, tmp_path / "loss.png")
    assert lines["training"] == [(1, 2.0)]
