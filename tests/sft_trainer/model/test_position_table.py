"""Models that look positions up, with documents longer than their table."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sft_trainer.datasets.config import DataloaderConfig
from sft_trainer.datasets.prepare import PreparedData, prepare_data
from sft_trainer.model.position_table import refuse_documents_beyond_position_table
from sftjob.failure import JobFailure, Reason
from tests.sft_trainer.datasets.chats import write_chats
from tests.sft_trainer.train.small_run import save_tokenizer

TABLES = {
    "gpt2": {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "gptj": {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4},
    "opt": {
        "max_position_embeddings": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "ffn_dim": 16, "word_embed_proj_dim": 16,
    },
}  # fmt: skip


def _data(folder: Path, *, tokens: int) -> PreparedData:
    path = write_chats(folder / "texts.jsonl", [{"text": "a" * (tokens - 1)}, {"text": "bc"}])
    config = DataloaderConfig(dataset_config_list=[{"dataset": {"name": "texts", "anno_path": str(path)}}])
    tokenizer = save_tokenizer(folder / "tokenizer")
    return prepare_data(config, tokenizer_path=str(tokenizer), cache_dir=folder / "cache", seed=1)


@pytest.mark.parametrize("name", TABLES)
def test_a_document_beyond_the_table_is_refused_and_one_within_it_is_not(name: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(name, vocab_size=264, **TABLES[name])
    model = AutoModelForCausalLM.from_config(config)
    longest = 0
    for tokens in (31, 32, 33):
        data = _data(tmp_path, tokens=tokens)
        longest = int(data.packs.lengths.max())
        ids = torch.zeros(1, longest, dtype=torch.long)
        if longest <= 32:
            model(input_ids=ids)
            refuse_documents_beyond_position_table(model, data)
    assert longest > 32
    with pytest.raises(IndexError):
        model(input_ids=ids)
    with pytest.raises(
        JobFailure, match=r"spec\.data\.packing\.maxLength: the longest sample has 33 tokens"
    ) as refused:
        refuse_documents_beyond_position_table(model, data)
    assert refused.value.reason is Reason.INVALID_CONFIGURATION


def test_a_model_whose_positions_are_computed_has_no_table(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "qwen3", vocab_size=264, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32,
    )  # fmt: skip
    refuse_documents_beyond_position_table(AutoModelForCausalLM.from_config(config), _data(tmp_path, tokens=99))
