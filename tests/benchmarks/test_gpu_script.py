"""The script that will measure on a GPU, at a tiny shape on whatever is here: what stands in its baseline."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_baseline_has_command_device_settings_and_both_trainers_with_equal_losses() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", "--tiny"]
    said = subprocess.run(
        command, cwd=ROOT, env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=900
    )
    assert said.returncode == 0, said.stderr
    report = json.loads(said.stdout)
    assert report["command"] == "python -m benchmarks.gpu --json --tiny"
    assert (report["device"], report["peakFlopsPerSecond"]) == ("CPU", None)
    assert report["settings"] == {"maxLength": 64, "steps": 2, "warmup": 1, "rounds": 1, "precision": "fp32"}
    assert {"torch", "transformers", "trl"} <= report["versions"].keys()
    tiny = report["models"]["tiny"]
    assert tiny["largestLossDifference"] < 1e-4
    assert tiny["ratio"] == round(tiny["ours"]["tokensPerSecond"] / tiny["trl"]["tokensPerSecond"], 3)
    for name in ("ours", "trl"):
        assert (tiny[name]["mfu"], tiny[name]["recompute"], len(tiny[name]["losses"])) == (None, False, 2)
        # Two layers of three 32 x 64 and, with 4 heads of 16 and 2 for keys and values, 32 x 64 twice and 32 x 32
        # twice; a head of 512 x 32; attention over 63 tokens of a document: 6 * 2 * 4 * 16 * 63 at half.
        a_token = 6 * 2 * 12288 + 6 * 16384 + 6 * 2 * 4 * 16 * 63
        assert 0.97 < tiny[name]["tflops"] * 1e12 / tiny[name]["tokensPerSecond"] / a_token < 1.01
