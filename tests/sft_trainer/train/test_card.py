"""The README.md of an exported model, as the Hub's own client reads it."""

import math
import re
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard

from sft_trainer.train.card import card_text
from tests.sft_trainer.train.small_run import SmallRun


def _table(card: ModelCard) -> dict[str, str]:
    rows = [
        line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ") and line != "| | |"
    ]
    return dict(rows)


def test_the_card_says_what_the_run_did_and_is_the_same_from_an_attempt_that_only_exports(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", evaluation={"every_steps": 3}, total_steps=5)
    run.go()
    lines = [line for line in run.lines() if "loss" in line]
    file = run.exported / "README.md"
    written = file.read_text()
    card = ModelCard.load(file)
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft", "sftjob"],
    }
    assert "# A model trained from scratch\n" in card.text
    # The cache that the run made is named by the same digest.
    data = _table(card)["Data `d`"]
    digest = re.fullmatch(r"`sha256:([0-9a-f]{64})`", data)
    assert (run.folder / "cache" / f"tokens-{digest[1][:32]}").is_dir()
    assert f"By sftjob {version('sftjob')}.\n" in card.text
    assert _table(card) == {
        "Data `d`": data,
        "Steps": "5",
        "Tokens": f"{sum(line['tokens'] for line in lines):,}",
        "Loss of the last step": f"{lines[-1]['loss']:.4f}",
        "Evaluation loss": f"{run.evaluations()[5]:.4f}",
        "Configuration": f"`{run.manifest(5).config_digest}`",
    }
    assert math.isfinite(lines[-1]["loss"])

    file.unlink()
    run.go()
    assert file.read_text() == written


def test_a_card_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", total_steps=1)
    run.exported.mkdir(parents=True)
    (run.exported / "README.md").write_text("mine")
    run.go()
    assert (run.exported / "README.md").read_text() == "mine"


def test_the_model_that_was_fine_tuned_is_named_where_the_hub_looks_for_it() -> None:
    card = ModelCard(card_text(base="Qwen3: 8B", library="peft", rows=[("Steps", "1")]))
    assert (card.data.base_model, card.data.library_name, card.data.license) == ("Qwen3: 8B", "peft", None)
    assert "# Qwen3: 8B, fine-tuned\n" in card.text
    assert "No licence is stated here" in card.text
