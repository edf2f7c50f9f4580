"""The one shape in which text reaches the model.

T tokens of a pack, B documents in it.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedBatch:
    """Several documents side by side in one row. None of them sees another."""

    input_ids: torch.Tensor
    """[1, T] int64"""
    position_ids: torch.Tensor
    """[1, T] int64, from 0 in each document"""
    labels: torch.Tensor
    """[1, T] int64, the token to predict *at* each position (already shifted within its document), else -100"""
    cu_seqlens: torch.Tensor
    """[B + 1] int32: where documents begin, and T"""
    epoch: int | None = None
    """That it belongs to, from 1; None where it is pads, or no sample of a dataset."""
    pieces: tuple[tuple[int, int], ...] = ()
    """[B without pads]: the document's sample, and its first token in it. For the ledger; `to` leaves them behind."""

    def to(self, device: torch.device) -> "PackedBatch":
        return PackedBatch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
        )
