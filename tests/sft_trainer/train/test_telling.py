"""What a run says of its steps: what one is, and how long the rest takes."""

import logging
from pathlib import Path

import pytest
from small_run import SmallRun

from sft_trainer.train import telling
from sft_trainer.train.pace import Pace


def test_the_time_that_is_left_follows_neither_the_first_step_nor_a_slow_one() -> None:
    pace = Pace()
    assert [pace.add(seconds) for seconds in (60, 2, 2.5, 40, 2)] == [60, 2, 2.25, 2.5, 2.25]
    assert [pace.add(9) for _ in range(22)][-1] == 9


def test_a_start_says_what_a_step_is_and_each_step_how_long_the_rest_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    progress = telling.RunTeller.progress

    def progress_and_note(teller: telling.RunTeller, **changes: object) -> None:
        progress(teller, **changes)
        left.extend([changes["eta_seconds"]] if "eta_seconds" in changes else [])

    monkeypatch.setattr(telling.RunTeller, "progress", progress_and_note)
    monkeypatch.setattr(telling.Pace, "add", lambda _pace, _seconds: 10.0)
    with caplog.at_level(logging.INFO):
        SmallRun(tmp_path / "run", batch=4, total_steps=3).go()
    assert "global batch 4 packs = 1 rank x 4 accumulation steps of 1 pack" in caplog.text
    assert left == [20, 10, 0]
