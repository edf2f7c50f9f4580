"""The example with a script of its own, run as it stands."""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from transformers import AutoModelForCausalLM

from examples import tickets
from sftjob.job import parse_manifest

ROOT = Path(__file__).resolve().parents[2]


def test_the_script_example_trains_and_leaves_its_model(smollm2: Path, tmp_path: Path) -> None:
    tickets.write(tmp_path / "tickets.jsonl", rows=20)
    claims = {"scripts": ROOT / "examples", "models": smollm2.parent, "data": tmp_path, "results": tmp_path / "results"}
    command = [
        *(Path(sys.executable).with_name("sft"), "run", ROOT / "examples" / "script.yaml"),
        *("--work-dir", tmp_path / "run"),
        *(option for name, folder in claims.items() for option in ("--claim", f"{name}={folder}")),
    ]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "script succeeded" in done.stdout
    status = json.loads((tmp_path / "run" / "job.json").read_text())["status"]
    # 20 tickets, two in each pack of 256 tokens, eight packs a step.
    assert (status["progress"]["step"], status["progress"]["totalSteps"], status["data"]["packs"]) == (2, 2, 10)
    # `everySteps: 1`, though the script says nothing of checkpoints.
    saved = {path.name for path in (tmp_path / "results" / "checkpoints").glob("step-*")}
    assert saved == {"step-1", "step-2"}
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "results" / "model")).__name__ == "Qwen3ForCausalLM"
    assert not (tmp_path / "work").exists()


def test_the_script_example_is_valid_and_speaks_of_four_claims() -> None:
    spec = parse_manifest(yaml.safe_load((ROOT / "examples" / "script.yaml").read_text())).spec
    assert {uri.split("/")[2] for uri in spec.uris} == {"scripts", "models", "data", "results"}
