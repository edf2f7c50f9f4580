"""The other comparisons of training, at their smallest: what stands in their reports."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _reported(module: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{module}", "--json", *options]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert said.returncode == 0, said.stderr
    report: dict[str, Any] = json.loads(said.stdout)
    return report


def test_a_few_samples_are_packed_fuller_than_by_trl() -> None:
    report = _reported("packing", "--samples", "20000")
    assert report["trl"]["fill"] <= report["fill"] <= 1
    assert report["fill"] > 0.999
    assert {"seconds", "ratio", "firstSeconds", "open_seconds"} <= report.keys()


@pytest.mark.full
def test_all_contenders_train_to_the_same_losses() -> None:
    short = ("--max-length", "128", "--steps", "3", "--warmup", "1", "--rounds", "1")
    report = _reported("trainer_vs_trl", *short)
    losses = {name: result["losses"] for name, result in report["results"].items()}
    assert losses.pop("gemm") == []
    assert losses.keys() == {"ours", "plain", "trl"}
    for of_one in losses.values():
        assert of_one == pytest.approx(losses["plain"], rel=1e-4)
        assert of_one[2] < of_one[0]
    assert {"ratio", "memory_ratio", "gemm_bound_share"} <= report.keys()
    # Of the whole process: ours computes no logits that nobody trains.
    assert report["memory_ratio"] < 1
