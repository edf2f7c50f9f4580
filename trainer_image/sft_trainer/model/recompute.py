"""What layers compute again in the backward instead of keeping it: nothing, what is cheap, or everything.

In: a model's layers and the options. Called by `build`, before the layers are compiled and sharded: what is recomputed
is a part of a layer's graph, and its gathered parameters are there.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from sft_trainer.model import transformers_private
from sftjob.options import FSDPConfig

PRODUCTS = {
    "aten::mm": 0,
    "aten::addmm": 1,
    "aten::_grouped_mm": 0,
    "transformers::grouped_mm_fallback": 0,
    "bitsandbytes::gemm_4bit": 0,
}
"""Operator -> which of its arguments is the left factor. Batched products are none: in a layer they are attention that
is written out, whose scores are what recomputation is for.
"""
ATTENTION = frozenset(
    {
        "aten::_flash_attention_forward",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "flex_attention",
    }
)
_NARROW = 128
"""A product over so few numbers is limited by memory as a norm is: 2 * 128 operations a number in bf16 are half of what
an H100 does while it reads it. LoRA's B is such a one; kept beside its base's result it would take as much again.
"""


def recompute_in_backward(layers: Sequence[torch.nn.Module], fsdp_cfg: FSDPConfig) -> None:
    everything = recomputed_layers(len(layers), ratio=fsdp_cfg.recompute_ratio)
    for index, layer in enumerate(layers):
        if index in everything:
            transformers_private.checkpoint_by(layer, functools.partial(checkpoint, use_reentrant=False))
        elif fsdp_cfg.recompute_selectively:
            policy = functools.partial(_policy, adds_in_place=_has_experts_with_biases(layer))
            contexts = functools.partial(create_selective_checkpoint_contexts, policy)
            transformers_private.checkpoint_by(
                layer, functools.partial(checkpoint, use_reentrant=False, context_fn=contexts)
            )


def recomputed_layers(count: int, *, ratio: float) -> list[int]:
    """round(ratio * count) of them, evenly spread."""
    chosen = round(ratio * count)
    return [index for index in range(count) if (index + 1) * chosen // count > index * chosen // count]


def _policy(_context: Any, operator: Any, *arguments: Any, adds_in_place: bool, **_: Any) -> CheckpointPolicy:
    name = operator.name()
    is_product = name in PRODUCTS and arguments[PRODUCTS[name]].shape[-1] > _NARROW
    if name in ATTENTION or (is_product and not (adds_in_place and name == "aten::_grouped_mm")):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _has_experts_with_biases(layer: torch.nn.Module) -> bool:
    """The library adds them in place, to the very result that would be kept."""
    return any(getattr(module, "has_bias", False) for module in layer.modules())
