"""What the loop hands to the export."""

from pathlib import Path

from small_run import SmallRun
from transformers import AutoTokenizer

from sft_trainer.datasets.template import chat_template_named


def test_the_exported_model_speaks_the_template_that_it_was_trained_with(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", chat_template="llama3", total_steps=1)
    run.go()
    exported = AutoTokenizer.from_pretrained(run.exported).chat_template
    assert exported == chat_template_named("llama3")
    assert exported != AutoTokenizer.from_pretrained(run.folder / "tokenizer").chat_template
