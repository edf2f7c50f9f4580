import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from examples import tickets

ROOT = Path(__file__).resolve().parents[2]


def torchrun(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("torchrun"), "--nproc_per_node=2", "examples/toy_train.py", *arguments]
    # torchrun leaves a folder of logs in TMPDIR.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    # A rank that waits for one that is gone would wait for longer.
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, timeout=300, stderr=subprocess.PIPE, text=True
    )


def metrics(work_dir: Path) -> list[dict[str, Any]]:
    (file,) = work_dir.rglob("metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_tutorials_script_trains_from_scratch_and_then_from_a_model_folder(smollm2: Path, tmp_path: Path) -> None:
    data, cache = tickets.write(tmp_path / "tickets.jsonl", rows=20), tmp_path / "cache"
    common = ["--tiny", "--tokenizer", smollm2, "--data", data, "--cache-dir", cache]

    ended = torchrun(tmp_path, *common, "--work-dir", tmp_path / "first")
    assert ended.returncode == 0, ended.stderr
    first = metrics(tmp_path / "first")
    # 20 tickets, two in each pack of 256 tokens, eight packs a step.
    assert [row["step"] for row in first] == [1, 2]
    # Guessing among 49152 tokens costs ln 49152 = 10.80 nats.
    assert 10.6 < first[0]["loss"] < 11.0
    (folder,) = (tmp_path / "first").glob("*/hf")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert not any(info.values())

    # All tokens are equally likely to a model without a head: the first loss tells that this one was loaded.
    model.lm_head.weight.data.zero_()
    model.save_pretrained(tmp_path / "headless")

    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*.bin")}
    ended = torchrun(
        tmp_path, *common, "--work-dir", tmp_path / "second", "--load-from", tmp_path / "headless", "--default-length"
    )
    assert ended.returncode == 0, ended.stderr
    second = metrics(tmp_path / "second")
    # One pack a rank and one epoch, where the script says neither.
    assert [row["step"] for row in second] == [1, 2, 3, 4, 5]
    assert second[0]["loss"] == pytest.approx(10.8027, abs=1e-4)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.bin")} == made
    assert len(made) == 2


def test_a_bad_line_ends_both_ranks_with_its_file_and_number(smollm2: Path, tmp_path: Path) -> None:
    data = tickets.write(tmp_path / "tickets.jsonl", rows=20)
    with data.open("a") as file:
        file.write('{"messages": [\n')
    common = ["--tiny", "--tokenizer", smollm2, "--data", data, "--cache-dir", tmp_path / "cache"]
    ended = torchrun(tmp_path, *common, "--work-dir", tmp_path / "work")
    assert ended.returncode == 1
    assert f"JobFailure: {data}:21: " in ended.stderr
    assert not list((tmp_path / "work").rglob("metrics.jsonl"))
