"""What the loop hands to the export."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from small_run import SmallRun, save_base, save_tokenizer
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from sft_trainer.datasets import OpenaiTokenizeFunctionConfig, PretrainTokenizeFunctionConfig
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig
from sft_trainer.datasets.special import special_tokens
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


def test_the_exported_model_ends_where_it_was_trained_to_end(tmp_path: Path) -> None:
    """A base model's generation config knows the end of a text only."""
    base = save_base(tmp_path / "base")
    (base / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": true, "eos_token_id": 7}')
    run = SmallRun(tmp_path / "run", total_steps=1, load_from=base)
    run.go()
    [end] = AutoTokenizer.from_pretrained(run.exported).encode("<|eot_id|>", add_special_tokens=False)
    generation = GenerationConfig.from_pretrained(run.exported)
    assert (generation.eos_token_id, generation.temperature) == ([7, end], 0.6)


def test_a_model_from_scratch_knows_its_tokenizers_special_tokens(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", total_steps=1)
    run.go()
    tokenizer = AutoTokenizer.from_pretrained(run.exported)
    for config in (AutoConfig.from_pretrained(run.exported), GenerationConfig.from_pretrained(run.exported)):
        assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert tokenizer.eos_token_id is not None


TAGGED = (
    "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}<|eot_id|>\n{% endgeneration %}{% endfor %}"
)
HEADERS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "chosen", "end"),
    [
        (None, None, "<|end_of_text|>"),
        (None, "llama3", "<|eot_id|>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None, "<|end_of_text|>"),
        (TAGGED, None, "<|eot_id|>"),
        (HEADERS, None, "<|start_header_id|>"),
    ],
    ids=[
        "passages",
        "a template of ours",
        "a template without an end",
        "a template that trains a line break behind the end",
        "a template whose answers end with the header behind them",
    ],
)
def test_the_end_is_that_of_the_template_or_of_a_text(
    template: str | None, chosen: str | None, end: str, tmp_path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path))
    tokenizer.add_special_tokens({"eos_token": "<|end_of_text|>"})
    tokenizer.chat_template = template
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path)
    assert special_tokens(str(tmp_path), chat_template=chosen).end == tokenizer.convert_tokens_to_ids(end)


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
