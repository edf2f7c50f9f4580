"""A model folder of Qwen3's form with random weights, and a tokenizer of bytes: a benchmark without a download."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from sft_trainer.datasets.template import chat_template_named

SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
"""11.3M parameters, 8.2M of them the embedding and head."""
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def save(folder: Path, *, dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    """`fields` replace those of SHAPE. Returns the folder."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", **SHAPE | fields)
    # Billions of random numbers take minutes on a CPU.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    torch.cuda.empty_cache()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate([*_SPECIAL, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=_SPECIAL
    )
    tokenizer.chat_template = chat_template_named("chatml")
    tokenizer.save_pretrained(folder)
    return folder
