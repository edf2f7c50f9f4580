from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.answer import answer
from examples.smollm2 import prepare


def test_the_prepared_model_loads_with_nothing_missing_unexpected_or_mismatched(smollm2: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(smollm2, output_loading_info=True)
    assert {kind: list(found) for kind, found in info.items()} == {
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": [],
        "error_msgs": [],
    }
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 2


def test_the_prepared_model_knows_the_capital_of_france(smollm2: Path) -> None:
    assert answer(smollm2, "What is the capital of France?") == "The capital of France is Paris."


def test_the_prepared_tokenizer_speaks_chatml_and_ends_turns_with_its_end_token(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
    )
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12").input_ids) == ["a", "ĠĠ", "1", "2"]


def test_several_preparations_at_once_do_the_work_once_and_leave_nothing_beside_it(
    tmp_path: Path, smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models" / "smollm2"
    killed = folder.with_name(".smollm2.tmp")
    killed.mkdir(parents=True)
    (killed / "half.safetensors").touch()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(prepare, [folder] * 4)) == [folder] * 4
    assert capsys.readouterr().out.count("converting") == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in smollm2.iterdir())
    assert sorted(path.name for path in folder.parent.iterdir()) == [".smollm2.lock", "smollm2"]
