"""AdamW over sharded or whole parameters, and the gradient's global norm."""

import torch
from torch.distributed.tensor import DTensor

from sft_trainer.train.bf16_moments import Bf16MomentsAdamW
from sftjob.options import AdamWConfig


def build_optimizer(model: torch.nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """Decays matrices; vectors (norms and biases) are not decayed, as is usual. The rate is set at each step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = Bf16MomentsAdamW if config.moments == "bf16" else torch.optim.AdamW
    return kind(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def update(optimizer: torch.optim.AdamW, *, skipped: torch.Tensor) -> None:
    """One step. Where `skipped` (a scalar on the device) is 1, weights, moments and the count of updates stay.

    The fused kernel decides it, so the host need not know: this is how torch.amp.GradScaler tells it of an overflow.
    """
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.step()


def clip_gradients(model: torch.nn.Module, *, max_norm: float) -> torch.Tensor:
    """Scales gradients to a global L2 norm of at most `max_norm`; returns the norm before, a scalar."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    # All ranks: the shards' squares are summed, so that every rank scales alike.
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
