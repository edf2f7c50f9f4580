"""The benchmark of saves at its smallest: its figures are those of the saves that it has seen."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_what_is_told_of_saves_adds_up() -> None:
    short = ("--model", "qwen3-11m", "--max-length", "64", "--every", "2", "--saves", "2", "--rounds", "1")
    command = [sys.executable, "-m", "benchmarks.save_stall", "--json", *short]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert said.returncode == 0, said.stderr
    report = json.loads(said.stdout)
    # Five steps; saves after the second and the fourth are told with the third and the fifth.
    [steps] = report["steps"]["sync"]
    assert report["stepSeconds"] == statistics.median([steps[1], steps[3]])
    for mode in ("sync", "async"):
        told, [steps] = report[mode], report["steps"][mode]
        first, second = told["stalls"]
        assert min(first, second) > 0
        assert told["stallSeconds"] == pytest.approx((first + second) / 2, abs=1e-3)
        assert told["savedSeconds"] == pytest.approx((first + steps[2] + second + steps[4]) / 2, abs=1e-3)
        assert told["ratio"] == pytest.approx((first + second) / 2 / report["stepSeconds"], abs=1e-2)
