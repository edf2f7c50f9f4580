"""Tiny random models of transformers in folders, packs for them, and ours built from them, as the tests here need."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sft_trainer.model import FolderConfig, get_model_config_from_hf
from sft_trainer.model.build import build_model
from sft_trainer.packed import PackedBatch
from sftjob.options import CELossConfig, FSDPConfig

CPU = torch.device("cpu")
VOCAB_SIZE = 96

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    # Large enough that attention and softcaps show in the logits.
    "initializer_range": 0.15,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LLAMA = {"model_type": "llama"}

MODELS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "llama_with_biases": _LLAMA | {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen3_tied": {"model_type": "qwen3", "tie_word_embeddings": True},
    # A document of 13 tokens is longer than the window.
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "qwen3_moe": {"model_type": "qwen3_moe", **_EXPERTS},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    # Routers, and the corrections of their choice, are fp32 in a bf16 model.
    "ernie4_5_moe": {
        "model_type": "ernie4_5_moe",
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 0,
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
    },
    # Softcapped scores and logits; a window in every other layer.
    "gemma2": {
        "model_type": "gemma2",
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    # Sinks, and a window in every other layer.
    "gpt_oss": {
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    # Learnt positions: with rotary ones, counting from the start of the pack would go unnoticed.
    "gpt2": {"model_type": "gpt2", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    # Arithmetic after the head: a bias, a divisor, a factor.
    "phi": {"model_type": "phi"},
    "granite": {"model_type": "granite", "logits_scaling": 4.0},
    "cohere": {"model_type": "cohere", "logit_scale": 0.25, "tie_word_embeddings": True},
}


def config_fields(name: str, **fields: Any) -> dict[str, Any]:
    return _COMMON | MODELS[name] | fields


def save_random_model(folder: Path, name: str, *, dtype: torch.dtype = torch.float32, **fields: Any) -> str:
    """The library's own model with its own initialisation, in a folder; returns the folder's path."""
    settings = config_fields(name, **fields)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases and norms too: those that start at 0 or 1 would hide that they were left out.
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    return str(folder)


def transformers_model(folder: str, *, attention: str = "eager") -> PreTrainedModel:
    """The oracle."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)


def config_of(folder: Path) -> FolderConfig:
    return get_model_config_from_hf(folder)


def built(folder: str | None, *, config: Any = None, **arguments: Any) -> torch.nn.Module:
    defaults = {
        "load_from": folder,
        "loss_cfg": CELossConfig(chunk_size=7),
        "fsdp_cfg": FSDPConfig(),
        "precision": "fp32",
        "device": CPU,
        "mesh": None,
        "seed": 11,
    }
    return build_model(config or get_model_config_from_hf(folder), **defaults | arguments)


def documents(lengths: list[int], *, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator) for length in lengths]


def next_tokens(document: torch.Tensor) -> torch.Tensor:
    """Labels already shifted, the first three of every document untrained."""
    labels = torch.cat([document[1:], torch.tensor([-100])])
    labels[:3] = -100
    return labels


def pack(texts: list[torch.Tensor], *, trained: bool = True) -> PackedBatch:
    lengths = torch.tensor([0, *map(len, texts)])
    labels = torch.cat([next_tokens(text) for text in texts])
    if not trained:
        labels = torch.full_like(labels, -100)
    return PackedBatch(
        input_ids=torch.cat(texts).unsqueeze(0),
        position_ids=torch.cat([torch.arange(len(text)) for text in texts]).unsqueeze(0),
        labels=labels.unsqueeze(0),
        trained_rows=(labels != -100).nonzero()[:, 0],
        cu_seqlens=lengths.cumsum(0).to(torch.int32),
    )


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}
