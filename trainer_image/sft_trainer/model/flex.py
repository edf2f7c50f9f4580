"""Attention with softcapped scores and sinks in one kernel on a GPU, by torch's FlexAttention. Called by `attention`.

T tokens of a pack, H query heads, K key heads, D head size; blocks of 128 tokens. torch's FlashAttention has neither
softcaps nor sinks, and no gradient flows through its log-sum-exp; FlexAttention has the one, and by its log-sum-exp
the other.
"""

# ruff: noqa: N803, N806 -- a tensor's name ends with its shape

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

SMALLEST_HEAD = 16
"""Below it there is no kernel."""
_BLOCK = 128


def block_mask(documents_T: torch.Tensor, *, window: int | None) -> BlockMask:
    """What the layers with this window see of a pack. `documents_T`: which document a token is of, rising.

    By blocks from the start, without a host synchronisation: `create_block_mask` makes all T x T pairs first, 16 GB of
    them at 128k tokens. A block that is taken for seen in part and is not costs time, never a wrong number.
    """
    tokens = documents_T.shape[0]
    place = torch.arange(-(-tokens // _BLOCK), device=documents_T.device)
    first, last = documents_T[place * _BLOCK], documents_T[(place * _BLOCK + _BLOCK - 1).clamp(max=tokens - 1)]
    # [query blocks, key blocks]
    behind = place[:, None] - place[None, :]
    seen = (behind >= 0) & (last[None, :] >= first[:, None])
    whole = (behind >= 1) & (first[None, :] == last[:, None]) & (place[:, None] * _BLOCK + _BLOCK <= tokens)
    if window is not None:
        seen &= (behind - 1) * _BLOCK + 1 < window
        whole &= behind * _BLOCK + _BLOCK - 1 < window

    def sees(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        in_document = (documents_T[query] == documents_T[key]) & (query >= key)
        return in_document if window is None else in_document & (query - key < window)

    return BlockMask.from_kv_blocks(
        *_listed(seen & ~whole), *_listed(whole), BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens)
    )


def flex(
    query_1HTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    mask: BlockMask,
    *,
    scaling: float | None,
    softcap: float | None,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    """[1, H, T, D] of values."""

    def capped(score: torch.Tensor, *_: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    # A compiled layer takes it into its own graph.
    attend = flex_attention if torch.compiler.is_compiling() else _compiled()
    attended_1HTD, aux = attend(
        query_1HTD,
        key_1KTD,
        value_1KTD,
        score_mod=None if softcap is None else capped,
        block_mask=mask,
        scale=scaling,
        enable_gqa=query_1HTD.shape[1] != key_1KTD.shape[1],
        # Left to itself it would take its kernel for decoding below 128 tokens, which some lengths have no size for.
        kernel_options={"BACKEND": "TRITON"},
        return_aux=AuxRequest(lse=True),
    )
    if sinks_H is None:
        return attended_1HTD
    # The softmax's sum with the sink in it: exp(lse) / (exp(lse) + exp(sink)) of what it was without.
    kept_1HT1 = torch.sigmoid(aux.lse - sinks_H.float()[:, None]).unsqueeze(-1)
    return (attended_1HTD * kept_1HT1).to(attended_1HTD.dtype)


@functools.cache
def _compiled() -> Callable[..., Any]:
    """Uncompiled, all scores would exist at once."""
    compiled: Callable[..., Any] = torch.compile(flex_attention)
    return compiled


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row of blocks how many are True, and their places, those first."""
    places = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32)[None, None], places.int()[None, None]
