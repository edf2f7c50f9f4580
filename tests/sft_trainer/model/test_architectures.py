"""docs/architectures.md against the models themselves."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8").splitlines()

# Known before this table existed, from scripts that had none of our code.
EXACT = [
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3",
    "gemma3_text", "phi3", "olmo", "olmo2", "olmo3", "smollm3", "granite", "glm4", "gpt_oss", "deepseek_v2",
    "deepseek_v3", "cohere", "cohere2",
]  # fmt: skip
LEAKING = ["phimoe", "minimax", "deepseek_v4", "recurrent_gemma", "zaya", "bloom", "mpt", "mamba", "jamba"]


def _results() -> dict[str, str]:
    rows = (re.match(r"\| `(.+?)` \| \w+ \| (.+?) \|", line) for line in COMMITTED if "`model_type`" not in line)
    return {row[1]: row[2] for row in rows if row}


def _fresh(*model_types: str) -> list[str]:
    command = [sys.executable, "-m", "tests.architectures", *model_types]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_the_table_has_the_known_types_right_and_none_wrong() -> None:
    results = _results()
    assert len(results) == 196
    assert {model_type: results[model_type] for model_type in EXACT} == dict.fromkeys(EXACT, "exact")
    assert {model_type: results[model_type] for model_type in LEAKING} == dict.fromkeys(LEAKING, "refused")
    assert sum(result == "exact" for result in results.values()) >= 95
    assert "wrong" not in results.values()


def test_types_tried_anew_have_the_rows_of_the_table() -> None:
    types = ["qwen3_moe", "gemma2", "gpt_oss", "phimoe", "bloom", "qwen3_next", "stablelm", "emu3", "dbrx"]
    rows = _fresh(*types)
    assert [re.match(r"\| `(.+?)` \|", row)[1] for row in rows] == types
    assert [row for row in rows if row not in COMMITTED] == []


@pytest.mark.full
def test_the_whole_table_made_anew_is_the_committed_one() -> None:
    assert _fresh() == COMMITTED
