"""Metrics of several attempts as one curve."""

import json
import math
from pathlib import Path

import pytest

from sft_cli.metrics import Row, read_metrics
from sft_cli.plot import plot_loss


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
    assert read_metrics(tmp_path) == [Row(1, 9, 1.9), Row(2, 10, 3.0), Row(3, 11, 4.1), Row(4, 9, 4.9)]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 1, 1, torn='{"step": 2, "lo')
    assert read_metrics(tmp_path) == [Row(1, 1, 1.1)]


def test_a_broken_line_within_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, 1, 1, torn='{"step": 2}\n')
    with pytest.raises(ValueError, match=f"{file}:2: not a line of metrics"):
        read_metrics(tmp_path)


def test_evaluations_are_not_steps_and_a_skipped_steps_loss_may_be_no_number(tmp_path: Path) -> None:
    write(tmp_path, 1, 1, torn='{"step": 1, "eval_loss": 0.5, "best_step": 1}\n{"step": 2, "loss": null}\n')
    first, second = read_metrics(tmp_path)
    assert first == Row(1, 1, 1.1)
    assert (second.step, math.isnan(second.loss)) == (2, True)
    plot_loss([first, second], tmp_path / "loss.png", title="tiny")


def test_a_run_without_steps_has_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_a_curve_is_drawn_of_one_step_and_of_many(tmp_path: Path) -> None:
    for rows in ([Row(1, 1, 2.0)], [Row(step, 1 + step // 50, 4 / step) for step in range(1, 101)]):
        plot_loss(rows, tmp_path / "loss.png", title="tiny")
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
