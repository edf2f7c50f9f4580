"""Experts of a mixture in the precision of the other matrices, on one process.

The library multiplies all experts in one grouped product, for which autocast has no rule: it would be computed in the
dtype of the weights, fp32, where FSDP2's mixed precision makes it bf16. Called by `build`.

T tokens of a pack, D hidden.
"""

# ruff: noqa: N803 -- a tensor's name ends with its shape

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

NAME = "sftjob_autocast"
_GROUPED = "grouped_mm"


def follow_autocast(model: PreTrainedModel) -> None:
    """Those that the library would compute by grouped products; loops over experts follow it by themselves."""
    ExpertsInterface.register(NAME, _grouped_in_autocast)
    chosen: dict[str, str | None] = model.get_experts_implementation()
    model.set_experts_implementation({part: NAME if name == _GROUPED else name for part, name in chosen.items()})


class _Cast:
    """A module whose parameters show in another dtype; gradients go to its own."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return value.to(self._dtype) if isinstance(value, torch.nn.Parameter) else value


def _grouped_in_autocast(experts: torch.nn.Module, hidden_TD: torch.Tensor, *routing: torch.Tensor) -> torch.Tensor:
    device = hidden_TD.device.type
    if not torch.is_autocast_enabled(device):
        return grouped_mm_experts_forward(experts, hidden_TD, *routing)
    return grouped_mm_experts_forward(_Cast(experts, torch.get_autocast_dtype(device)), hidden_TD, *routing)
