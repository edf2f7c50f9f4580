"""Attention over documents packed side by side, under the name by which transformers' modules call it.

T tokens of a pack, H query heads, K key heads (H a multiple of K), D head size. Each document attends to itself only,
causally, within a sliding window where the layer has one, with softcapped scores (Gemma 2) and sinks (gpt-oss) where it
has those. No mask is ever built for a whole pack, and none of the library's own is used: `register()` adds no mask
function, and then `masking_utils` hands on None.
"""

# ruff: noqa: N803, N806 -- a tensor's name ends with its shape

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PreTrainedModel

from sft_trainer.model.flex import SMALLEST_HEAD, block_mask, flex
from sftjob.failure import JobFailure, Reason

NAME = "sftjob"

_flash_attention = torch.ops.aten._flash_attention_forward
_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_FLASH_MAX_HEAD_SIZE = 256
_FLASH_HEAD_STEP = 8
_FLASH_CAPABILITY = 8
"""Ampere's."""
# FlexAttention trains nowhere else.
_FLEX_DEVICES = ("cuda",)

# What the library hands to every attention and what changes nothing here: documents come as `cu_seq_lens_q`.
_WITHOUT_EFFECT = frozenset(
    {"cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "position_ids", "position_embeddings", "use_cache"}
)

_DROPOUT_FIELDS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""Of the attention's, in config.json: as most models call it, GPT-2 and its like, BERT and its like."""


def register() -> None:
    AttentionInterface.register(NAME, packed_attention)


BlockMasks = Mapping[int | None, BlockMask]
"""By window."""


def has_softcaps_or_sinks(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    return getattr(config, "attn_logit_softcapping", None) is not None or any(
        getattr(module, "sinks", None) is not None for module in model.modules()
    )


def block_masks(model: PreTrainedModel, documents_T: torch.Tensor) -> BlockMasks | None:
    """What the layers of a model that `has_softcaps_or_sinks` share in a forward; None where they use none."""
    if documents_T.device.type not in _FLEX_DEVICES:
        return None
    windows = {None, getattr(model.config.get_text_config(), "sliding_window", None)}
    return {window: block_mask(documents_T, window=window) for window in windows}


def packed_attention(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    block_masks: BlockMasks | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """[1, T, H, D] of values, and no attention weights.

    `cu_seq_lens_q`: [B + 1] int32, where the B documents begin, and T. `softcap`: scores become `softcap *
    tanh(scores / softcap)`. `s_aux`: [H], each head's sink: a score that takes part in the softmax and has no value.
    `block_masks`: as the function of this name gives them.
    Raises JobFailure(INVALID_CONFIGURATION) for arithmetic that it does not have, instead of leaving it out.
    """
    asked = {"attention_mask": attention_mask, "dropout": dropout, **others}
    refused = sorted(name for name, value in asked.items() if name not in _WITHOUT_EFFECT and _has_effect(value))
    if is_causal is False or (is_causal is None and not getattr(module, "is_causal", True)):
        refused.append("is_causal=False")
    if key_1KTD.shape[2] != query_1HTD.shape[2]:
        refused.append("other keys than one a token")
    if refused:
        remedy = f"set {_dropout_field(module)} to 0 in config.json" if refused == ["dropout"] else "use another model"
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"model: {type(module).__name__} needs {', '.join(refused)} in its attention, which packed training does "
            f"not have; {remedy}",
        )
    if cu_seq_lens_q is None:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"model: {type(module).__name__} is not told by its layers where documents begin; use another model",
        )
    device = query_1HTD.device.type
    dtype = query_1HTD.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    query_1HTD, key_1KTD, value_1KTD = (x.to(dtype) for x in (query_1HTD, key_1KTD, value_1KTD))
    plain = softcap is None and s_aux is None
    if not plain and block_masks and sliding_window in block_masks and _has_flex_kernel(query_1HTD, value_1KTD):
        mask = block_masks[sliding_window]
        attended_1HTD = flex(query_1HTD, key_1KTD, value_1KTD, mask, scaling=scaling, softcap=softcap, sinks_H=s_aux)
        return attended_1HTD.transpose(1, 2), None
    # [T, heads, D]: the layout in which documents are slices of rows.
    query_THD, key_TKD, value_TKD = (x[0].transpose(0, 1) for x in (query_1HTD, key_1KTD, value_1KTD))
    if plain and _has_flash_kernel(query_THD, value_TKD):
        attended_THD = _on_gpu(query_THD, key_TKD, value_TKD, cu_seq_lens_q, scaling, sliding_window)
    else:
        attended_THD = _by_document(
            query_THD, key_TKD, value_TKD, cu_seq_lens_q, scaling, sliding_window, softcap, s_aux
        )
    return attended_THD.unsqueeze(0), None


def _dropout_field(module: torch.nn.Module) -> str:
    config = getattr(module, "config", None)
    return next((name for name in _DROPOUT_FIELDS if getattr(config, name, 0)), _DROPOUT_FIELDS[0])


def _has_flex_kernel(query_1HTD: torch.Tensor, value_1KTD: torch.Tensor) -> bool:
    return min(query_1HTD.shape[-1], value_1KTD.shape[-1]) >= SMALLEST_HEAD


def _has_flash_kernel(query_THD: torch.Tensor, value_TKD: torch.Tensor) -> bool:
    return (
        query_THD.device.type == "cuda"
        and query_THD.dtype in _FLASH_DTYPES
        and max(query_THD.shape[-1], value_TKD.shape[-1]) <= _FLASH_MAX_HEAD_SIZE
        and _capability(query_THD.device) >= _FLASH_CAPABILITY
    )


# The compiler can't look into the driver.
@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).major


def _has_effect(value: Any) -> bool:
    return value is not None and (isinstance(value, torch.Tensor) or bool(value))


def _on_gpu(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    starts: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Without a host synchronisation."""
    if starts.shape[0] == 2 and window is None and value_TKD.shape[-1] == query_THD.shape[-1]:
        # One document as long as the pack: on Hopper cuDNN's kernel takes 0.56 times as long as the one below.
        return _one_document(query_THD, key_TKD, value_TKD, scaling, None)
    # T bounds every document. Their true maximum is an integer of its own in each pack: it would recompile the layer.
    longest = query_THD.shape[0]
    size, value_size = query_THD.shape[-1], value_TKD.shape[-1]
    width = math.ceil(max(size, value_size) / _FLASH_HEAD_STEP) * _FLASH_HEAD_STEP
    # What is under torch's `varlen_attn`, which itself has a list among its arguments: inductor's C++ can't call that.
    # Zeros add nothing to scores; what they make of values is cut off.
    attended_THD = _flash_attention(
        *(_padded(x, width=width) for x in (query_THD, key_TKD, value_TKD)),
        starts,
        starts,
        longest,
        longest,
        dropout_p=0.0,
        is_causal=window is None,
        return_debug_mask=False,
        # Left to itself it would be that of the width.
        scale=size**-0.5 if scaling is None else scaling,
        # The kernel counts the keys before a query, a config's window counts the query itself too.
        window_size_left=-1 if window is None else window - 1,
        window_size_right=0,
    )[0]
    return attended_THD[..., :value_size]


def _padded(heads_TXD: torch.Tensor, *, width: int) -> torch.Tensor:
    missing = width - heads_TXD.shape[-1]
    return F.pad(heads_TXD, (0, missing)) if missing else heads_TXD


# Its loop over documents would be unrolled into one graph per set of lengths.
@torch.compiler.disable
def _by_document(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    starts: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    lengths = starts.diff().tolist()
    documents = zip(query_THD.split(lengths), key_TKD.split(lengths), value_TKD.split(lengths), strict=True)
    if softcap is None and sinks_H is None:
        return torch.cat([_one_document(q, k, v, scaling, window) for q, k, v in documents])
    return torch.cat([_one_document_written_out(q, k, v, scaling, window, softcap, sinks_H) for q, k, v in documents])


def _one_document(
    query_THD: torch.Tensor, key_TKD: torch.Tensor, value_TKD: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    length = query_THD.shape[0]
    band_TT = None
    if window is not None and length > window:
        band_TT = _band(length, window=window, device=query_THD.device)
    attended_1HTD = F.scaled_dot_product_attention(
        *(x.transpose(0, 1).unsqueeze(0) for x in (query_THD, key_TKD, value_TKD)),
        attn_mask=band_TT,
        is_causal=band_TT is None,
        scale=scaling,
        enable_gqa=query_THD.shape[1] != key_TKD.shape[1],
    )
    return attended_1HTD[0].transpose(0, 1)


def _one_document_written_out(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    """For what no fused kernel has here: all H x T x T scores of a document exist at once, in fp32."""
    length, heads, size = query_THD.shape
    groups = heads // key_TKD.shape[1]
    key_HTD, value_HTD = (x.transpose(0, 1).repeat_interleave(groups, dim=0) for x in (key_TKD, value_TKD))
    scores_HTT = (query_THD.transpose(0, 1) @ key_HTD.mT).float() * (size**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores_HTT = softcap * torch.tanh(scores_HTT / softcap)
    seen_TT = _band(length, window=length if window is None else window, device=query_THD.device)
    scores_HTT = scores_HTT.masked_fill(~seen_TT, float("-inf"))
    if sinks_H is None:
        weights_HTT = scores_HTT.softmax(dim=-1)
    else:
        sinks_HT1 = sinks_H.float()[:, None, None].expand(-1, length, 1)
        weights_HTT = torch.cat([scores_HTT, sinks_HT1], dim=-1).softmax(dim=-1)[..., :-1]
    return (weights_HTT.to(value_HTD.dtype) @ value_HTD).transpose(0, 1)


def _band(length: int, *, window: int, device: torch.device) -> torch.Tensor:
    """[T, T]: True where a query (row) sees a key, which is itself or one of the `window` - 1 before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)
