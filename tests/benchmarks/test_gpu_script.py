"""The script that will measure on a GPU, at a tiny shape on whatever is here: what stands in its baseline."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Two layers of three 32 x 64 and, with 4 heads of 16 and 2 for keys and values, 32 x 64 twice and 32 x 32 twice.
LAYERS = 2 * 12288
HEAD = 512 * 32
# 63 tokens of a document, at half: 6 for a multiply-add forward and backward, twice for scores and values.
ATTENTION = 6 * 2 * 4 * 16 * 63
# Each pair of LoRA's matrices is 16 wide on either side of a module.
ADAPTERS = 2 * 16 * (3 * (32 + 64) + 2 * (32 + 64) + 2 * (32 + 32))
A_TOKEN = {
    "full": 6 * LAYERS + 6 * HEAD + ATTENTION,
    # What is frozen has no gradient of its own.
    "lora": 4 * LAYERS + 4 * HEAD + 6 * ADAPTERS + ATTENTION,
}


def test_a_baseline_has_command_device_settings_and_both_trainers_with_equal_losses(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    file = tmp_path / "baseline.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", "--tiny", "--output", str(file)]
    said = subprocess.run(
        command, cwd=ROOT, env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=900
    )
    assert said.returncode == 0, said.stderr
    report = json.loads(said.stdout)
    assert json.loads(file.read_text()) == report
    assert report["command"] == f"python -m benchmarks.gpu --json --tiny --output {file}"
    assert (report["device"], report["peakFlopsPerSecond"]) == ("CPU", None)
    assert report["settings"] == {
        "maxLength": 64,
        "packsPerStep": 2,
        "steps": 2,
        "warmup": 1,
        "rounds": 1,
        "precision": "fp32",
        "lora": {"rank": 16, "alpha": 32},
    }
    assert {"torch", "transformers", "trl", "peft"} <= report["versions"].keys()
    assert report["leftOut"] == {"unsloth": "not installed"}
    assert report["models"].keys() == {"tiny"}
    # NF4 is for GPUs.
    assert report["models"]["tiny"].keys() == {"full", "lora"}
    for method, compared in report["models"]["tiny"].items():
        assert compared["largestLossDifference"] < 1e-4
        ours, trl = compared["ours"], compared["trl"]
        assert compared["ratio"] == round(ours["tokensPerSecond"] / trl["tokensPerSecond"], 3)
        assert compared["memory_ratio"] == round(ours["peakBytes"] / trl["peakBytes"], 3)
        for result in (ours, trl):
            assert (result["mfu"], result["recompute"], len(result["losses"])) == (None, "none", 2)
            assert 0.97 < result["tflops"] * 1e12 / result["tokensPerSecond"] / A_TOKEN[method] < 1.01
        assert compared["leftOut"] == report["leftOut"]
        assert f"tiny        {method:8}unsloth left out: not installed" in said.stderr
        # A row for each as soon as it is there.
        assert f"tiny        {method:8}{compared['ratio']} times as fast as TRL" in said.stderr


def test_what_fails_is_told_in_its_place_and_by_the_exit_code() -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", "--tiny", "--methods", "lora", "--seconds", "0.001"]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert said.returncode == 1
    assert json.loads(said.stdout)["models"] == {"tiny": {"lora": {"notCompared": "the time was over"}}}
