"""What a line of metrics tells of a step, and that reading it later changes nothing."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import SmallRun

from sft_trainer.datasets.batch import BatchStream, PackedBatch
from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.progress import read_progress, write_progress
from sft_trainer.train import loop, telling
from sftjob.base import utc_now
from sftjob.progress import Progress, Stage


def test_numbers_that_are_read_a_step_later_are_those_read_at_once(tmp_path: Path, monkeypatch) -> None:
    at_once = SmallRun(tmp_path / "at-once", interval=3, evaluation={"every_steps": 2}, threshold=2.9)
    at_once.go()
    later = at_once.another("later")
    monkeypatch.setattr(loop, "steps_ahead", lambda _: 1)  # as on a GPU
    later.go()
    names = ["step", "loss", "grad_norm", "lr", "skipped_steps", "tokens", "trained_tokens", "samples", "eval_loss"]
    kept = [[{name: line.get(name) for name in names} for line in run.lines()] for run in (at_once, later)]
    assert kept[0] == kept[1]
    assert [line["step"] for line in kept[1]] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert 0 < later.state.skipped_steps < 6
    for name, tensor in at_once.tensors(6).items():
        assert torch.equal(later.tensors(6)[name], tensor), name


def test_a_line_tells_the_work_of_its_step_and_progress_the_share_of_a_known_limit(tmp_path: Path, monkeypatch) -> None:
    # Little, and slow data: what is rounded to four digits after the point is exact enough on any machine.
    monkeypatch.setattr(telling, "peak_flops", lambda *_, **__: 1e7)
    micro_batches = BatchStream.micro_batches

    def slowly(*which: Any, **more: Any) -> list[PackedBatch]:
        time.sleep(0.02)
        return micro_batches(*which, **more)

    monkeypatch.setattr(BatchStream, "micro_batches", slowly)
    (tmp_path / "scratch").mkdir()
    write_progress(tmp_path / "scratch", Progress(attempt=1, stage=Stage.STARTING, reported_at=utc_now()))
    run = SmallRun(tmp_path / "run", total_steps=2, scratch=tmp_path / "scratch")
    run.go()
    options = run.options()
    data = prepare_data(
        options.dataloader_cfg, tokenizer_path=options.tokenizer_path, cache_dir=tmp_path / "run" / "cache", seed=5
    )
    line = run.lines()[-1]
    lengths = [len(data.sample(sample)[0]) for sample in line["samples"]]
    assert sum(lengths) == line["tokens"]
    # A layer has matrices of 32 x 32, 32 x 16, 32 x 16, 32 x 32 and three of 32 x 48; the head 264 x 32. Attention: 2
    # layers, 2 heads of 16, queries and values alike, half of each square.
    needed = 6 * 2 * 7680 * sum(lengths) + 6 * 8448 * line["trained_tokens"]
    needed += 6 * 2 * 2 * 16 * sum(length**2 for length in lengths)
    assert line["tflops"] * 1e12 * line["step_seconds"] == pytest.approx(needed, rel=0.02)
    assert line["mfu"] == pytest.approx(line["tflops"] * 1e5, rel=0.01)
    assert read_progress(tmp_path / "scratch").mfu == line["mfu"]
    assert 0.02 <= line["data_seconds"] < line["step_seconds"]
    assert 2e8 < line["memory_bytes"] < 2e10  # of a process with torch in it


def test_on_a_cpu_no_share_of_a_limit_is_told(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", total_steps=1)
    run.go()
    assert "tflops" in run.lines()[0]
    assert "mfu" not in run.lines()[0]
