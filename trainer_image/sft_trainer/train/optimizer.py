"""AdamW over sharded or whole parameters, and the gradient's global norm."""

import torch
from torch.distributed.tensor import DTensor

from sft_trainer.train.bf16_moments import Bf16MomentsAdamW
from sftjob.options import AdamWConfig


def build_optimizer(model: torch.nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """Decays matrices; norms and biases are not decayed, as is usual. The rate is set at each step."""
    trained = [(_is_decayed(name, p), p) for name, p in model.named_parameters() if p.requires_grad]
    kind = Bf16MomentsAdamW if config.moments == "bf16" else torch.optim.AdamW
    return kind(
        [
            {"params": [p for is_decayed, p in trained if is_decayed], "weight_decay": config.weight_decay},
            {"params": [p for is_decayed, p in trained if not is_decayed], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def _is_decayed(name: str, parameter: torch.nn.Parameter) -> bool:
    """The biases of experts stand in one matrix."""
    return parameter.ndim >= 2 and not name.endswith("bias")


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
