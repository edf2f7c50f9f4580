"""The one shape in which text reaches the model.

T tokens of a pack, B documents in it, N trained positions.
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
    trained_rows: torch.Tensor
    """[N] int64: the positions whose labels count. Made with the batch: a GPU asked for them would stop its host."""
    epoch: int | None = None
    """That it belongs to, from 1; None where it is pads, or no sample of a dataset."""
    pieces: tuple[tuple[int, int], ...] = ()
    """[B without pads]: the document's sample, and its first token in it. For the ledger; `to` leaves them behind."""

    def to(self, device: torch.device) -> "PackedBatch":
        """For the model. Pads behind a document that is alone become its end, which it doesn't see: a pack of one
        document has a faster kernel."""
        starts = self.cu_seqlens
        if len(self.pieces) == 1 and len(starts) == 3:
            starts = starts[::2]

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            if device.type == "cuda" and tensor.device.type == "cpu":
                tensor = tensor.pin_memory()  # or the copy waits for what the GPU has still to do
            return tensor.to(device, non_blocking=True)

        return PackedBatch(
            input_ids=moved(self.input_ids),
            position_ids=moved(self.position_ids),
            labels=moved(self.labels),
            cu_seqlens=moved(starts),
            trained_rows=moved(self.trained_rows),
        )
