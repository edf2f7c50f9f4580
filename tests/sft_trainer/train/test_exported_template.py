"""What the loop hands to the export."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from small_run import SmallRun
from transformers import AutoTokenizer

from sft_trainer.datasets import OpenaiTokenizeFunctionConfig, PretrainTokenizeFunctionConfig
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig
from sft_trainer.datasets.template import chat_template_named


def dataset(name: str, tokenize_fn: object, **options: str) -> dict:
    return {"dataset": DatasetConfig(name=name, anno_path=f"{name}.jsonl", **options), "tokenize_fn": tokenize_fn}


LLAMA3, OWN = OpenaiTokenizeFunctionConfig(chat_template="llama3"), OpenaiTokenizeFunctionConfig()


def test_the_exported_model_speaks_the_template_that_it_was_trained_with(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", chat_template="llama3", total_steps=1)
    run.go()
    exported = AutoTokenizer.from_pretrained(run.exported).chat_template
    assert exported == chat_template_named("llama3")
    assert exported != AutoTokenizer.from_pretrained(run.folder / "tokenizer").chat_template


def test_sets_without_chats_have_no_say_in_the_exported_template(tmp_path: Path) -> None:
    options = SmallRun(tmp_path / "run").options()
    texts = [dataset("a", PretrainTokenizeFunctionConfig()), dataset("b", OWN, format="text")]
    mixed = DataloaderConfig(dataset_config_list=[*texts, dataset("c", LLAMA3)])
    assert replace(options, dataloader_cfg=mixed).chat_template == chat_template_named("llama3")
    assert replace(options, dataloader_cfg=DataloaderConfig(dataset_config_list=texts)).chat_template is None


def test_chats_of_several_templates_are_refused_for_the_exported_model_speaks_one() -> None:
    with pytest.raises(ValidationError) as refused:
        DataloaderConfig(dataset_config_list=[dataset("a", OWN), dataset("b", LLAMA3)])
    assert (
        "dataset_config_list: chats are written by several templates (llama3, the tokenizer's own), but the trained "
        "model speaks one; give each tokenize_fn the same chat_template"
    ) in str(refused.value)
