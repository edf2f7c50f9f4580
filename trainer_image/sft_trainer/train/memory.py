"""What a rank's tensors need, by kind: told before the first step, when a run that can't fit has cost nothing yet.

In: the built model and the options. Out: bytes. Pure; called by the loop. Weights, gradients, moments and what stays
gathered are exact; the others are what kernels keep, of compiled layers as an H200 showed it. The allocator's own
overhead and the layers that FSDP2 gathers for a moment come on top.
"""

import math
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from sft_trainer.model import nf4, transformers_private
from sft_trainer.model.build import compiles
from sft_trainer.model.recompute import recomputed_layers
from sft_trainer.run import RunOptions
from sft_trainer.train.world import World
from sftjob.memory import MemoryEstimate
from sftjob.options import AdamWConfig, CELossConfig, FSDPConfig

_FP32, _BF16 = 4, 2


def estimate_memory(
    model: PreTrainedModel,
    *,
    pack_tokens: int,
    precision: Literal["fp32", "bf16"],
    loss_cfg: CELossConfig,
    fsdp_cfg: FSDPConfig,
    optim_cfg: AdamWConfig,
    ranks: int = 1,
    compiled: bool = False,
) -> MemoryEstimate:
    """`pack_tokens`: of the longest pack. Parameters count as this rank holds them, frozen ones as weights alone.

    `ranks`: over how many a model that is not sharded yet will be; the first of them holds the most.
    """
    parameters = list(model.parameters())
    is_sharded = ranks > 1 or any(isinstance(parameter, DTensor) for parameter in parameters)
    trained = sum(_local_bytes(parameter, ranks) for parameter in parameters if parameter.requires_grad)
    head = model.get_output_embeddings().weight
    element = _BF16 if precision == "bf16" else _FP32
    if loss_cfg.mode == "chunk":
        # Compiled, they and their gradient; else it takes their place, and bf16 ones become fp32 for it.
        number = 2 * element if compiled else _FP32 + (_BF16 if element == _BF16 else 0)
        logits = min(pack_tokens, loss_cfg.chunk_size) * head.shape[0] * number
        logits += head.numel() * _FP32 if head.requires_grad else 0
        # What is sharded has been gathered in bf16.
        logits += head.numel() * _BF16 if element == _BF16 and not is_sharded and head.dtype == torch.float32 else 0
    else:
        logits = 2 * pack_tokens * head.shape[0] * _FP32
    return MemoryEstimate(
        precision=precision,
        pack_tokens=pack_tokens,
        weights=sum(_local_bytes(parameter, ranks) for parameter in parameters),
        gradients=trained,
        # Weights that are trained are kept in fp32.
        moments=2 * trained if optim_cfg.moments == "fp32" else trained,
        gathered=sum(p.numel() * element for p in _staying_gathered(model, fsdp_cfg)) if is_sharded else 0,
        activations=_activations(
            model,
            pack_tokens=pack_tokens,
            precision=precision,
            is_sharded=is_sharded,
            fsdp_cfg=fsdp_cfg,
            compiled=compiled,
        ),
        logits=logits,
    )


def run_memory(
    model: PreTrainedModel, options: RunOptions, *, world: World, precision: Literal["fp32", "bf16"]
) -> MemoryEstimate:
    """Of a rank of `world`, whether `model` is sharded by now or on the meta device."""
    return estimate_memory(
        model,
        pack_tokens=options.dataloader_cfg.pack_max_length,
        precision=precision,
        loss_cfg=options.loss_cfg,
        fsdp_cfg=options.fsdp_cfg,
        optim_cfg=options.optim_cfg,
        ranks=world.size,
        compiled=compiles(options.fsdp_cfg, world.device),
    )


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far: of tensors on a GPU, else of this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_line(estimate: MemoryEstimate) -> str:
    told = [f"{kind} {'unknown' if size is None else f'{size / 1e9:.2f}'}" for kind, size in estimate.kinds.items()]
    least = "at least " if estimate.is_least else ""
    return f"memory a rank, in GB: {', '.join(told)}; together {least}{estimate.together / 1e9:.2f}"


def _local_bytes(parameter: torch.nn.Parameter, ranks: int) -> int:
    if isinstance(parameter, DTensor):
        return parameter.to_local().nbytes
    if nf4.is_packed(parameter):
        # All of it on every rank.
        return nf4.packed_bytes(parameter)
    # FSDP2 gives each rank as many rows, rounded up, as long as there are any.
    return parameter.nbytes // len(parameter) * math.ceil(len(parameter) / ranks)


def _staying_gathered(model: PreTrainedModel, fsdp_cfg: FSDPConfig) -> Iterator[torch.nn.Parameter]:
    """Those that FSDP2 has whole on each rank from the forward to the backward: all that stand outside of layers."""
    layers = transformers_private.decoder_layers(model).values() if fsdp_cfg.reshard_after_forward else ()
    freed = {parameter for layer in layers for parameter in layer.parameters()}
    return (p for p in model.parameters() if p not in freed and not nf4.is_packed(p))


@dataclass(frozen=True)
class _Bytes:
    """Of one number of a token."""

    stream: int
    """Of the residual stream, which a layer gets."""
    norm: int
    """Of all that a norm of the stream keeps for its own backward, with what it gives to the products."""
    head_norm: int
    """The same of a norm of queries and keys."""
    product: int
    """Of what products and attention give and take, and of what stands between them."""


_KEPT = {
    # What comes in, normalised, and as it is given to the products.
    "fp32": _Bytes(stream=4, norm=12, head_norm=8, product=4),
    # The stream and all of the norm are fp32; each product makes a copy of its own, three after one norm and two after
    # the other: five for two norms. Queries and keys become fp32 for their norm, and are given back.
    "autocast": _Bytes(stream=4, norm=8 + 5, head_norm=6, product=2),
    # The stream is bf16, and becomes fp32 for the norm.
    "bf16": _Bytes(stream=2, norm=8, head_norm=6, product=2),
}


def _activations(
    model: PreTrainedModel,
    *,
    pack_tokens: int,
    precision: Literal["fp32", "bf16"],
    is_sharded: bool,
    fsdp_cfg: FSDPConfig,
    compiled: bool,
) -> int | None:
    config = model.config.get_text_config()
    modules = [name.rpartition(".")[2] for name, _ in model.named_modules()]
    mixture = _mixture(model)
    if mixture is None and any(parameter.ndim == 3 for parameter in model.parameters()):
        return None
    if "q_proj" not in modules or ("gate_proj" in modules) == (mixture is not None):
        return None
    if mixture is not None and compiled:
        # Nobody has seen yet what a compiler keeps of them.
        return None
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    # A list by layers (gemma3n), or a name of the model's own (hrm_text).
    if not all(isinstance(getattr(config, size, None), int) for size in sizes):
        return None
    is_autocast = precision == "bf16" and not is_sharded
    size = _KEPT["autocast" if is_autocast else precision]
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = heads * head_size, config.num_key_value_heads * head_size
    normed = queries + keys if "q_norm" in modules else 0
    # The gate, its activation, the other half and their product; of these products give the two halves.
    mlp, mlp_products, mlp_products_of_whole = 4 * inner, 2 * inner + hidden, 2 * inner
    if mixture is not None:
        # Of each expert that a token is sent to, besides: what it is given, and what it gives, which is weighted. The
        # router's probabilities are fp32.
        halves = mixture.chosen * (2 * mixture.inner + hidden)
        mlp = mixture.chosen * (4 * mixture.inner + 2 * hidden) + mixture.experts * _FP32 // size.product
        mlp_products, mlp_products_of_whole = halves + mixture.experts, halves
        if is_autocast:
            # One product follows the norm, the router's; the experts copy the rows that they are given.
            mlp -= hidden
    # Two norms; the MLP; queries, the attention's result and their halves turned by the rotary embedding; keys and
    # values.
    whole = 2 * size.norm * hidden + size.head_norm * normed + size.product * (mlp + 3 * queries + 2 * keys)
    if compiled:
        # What comes in and stands between attention and MLP, each normalised for the products, and what these two give;
        # the MLP's gate and other half; queries and keys, also before their norms, values, and the attention's result.
        # All else is computed again.
        whole = 2 * size.stream * hidden + size.product * (4 * hidden + 2 * inner + 3 * queries + 2 * keys + normed)
    # The layer's input, what each of its matrices and the attention give. Some of it is kept for nothing but to compute
    # the rest again; the other part is what the layer would have kept too.
    products = size.stream * hidden + size.product * (hidden + mlp_products + 2 * queries + 2 * keys)
    products_of_whole = size.stream * hidden + size.product * (mlp_products_of_whole + queries + keys + normed)
    layers = config.num_hidden_layers
    recomputed = len(recomputed_layers(layers, ratio=fsdp_cfg.recompute_ratio))
    others = products if fsdp_cfg.recompute_selectively else whole
    # One layer at a time is whole again in the backward.
    again = 0
    if recomputed:
        again = whole
    elif fsdp_cfg.recompute_selectively:
        again = whole - products_of_whole
    copied = 0 if fsdp_cfg.recompute_selectively else layers - recomputed
    copies = _copies_of_a_layer(model) * (copied + bool(again)) if is_autocast else 0
    return pack_tokens * ((layers - recomputed) * others + recomputed * size.stream * hidden + again) + copies


def _copies_of_a_layer(model: PreTrainedModel) -> int:
    """Autocast keeps one in bf16 of each matrix in fp32, for the backward."""
    first = next(iter(transformers_private.decoder_layers(model).values()))
    return sum(p.numel() * _BF16 for p in first.parameters() if p.ndim >= 2 and p.dtype == torch.float32)


@dataclass(frozen=True)
class _Mixture:
    experts: int
    chosen: int
    """Experts that a token is sent to."""
    inner: int
    """Width inside each."""


def _mixture(model: PreTrainedModel) -> _Mixture | None:
    """Where the first layer's MLP is a router and experts, all trained, and nothing else; else None."""
    first = next(iter(transformers_private.decoder_layers(model).values()))
    mlp = {name: p for name, p in first.named_parameters() if name.startswith("mlp.") and p.requires_grad}
    if set(mlp) != {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}:
        return None
    count, _, inner = mlp["mlp.experts.down_proj"].shape
    return _Mixture(count, model.config.get_text_config().num_experts_per_tok, inner)
