"""AdamW whose moments are kept in bf16 and updated in fp32: half the memory of the moments, for 8 significant bits.

Called by `optimizer`. torch's fused kernel demands one type of parameters, gradients and moments; it gets the moments
as fp32 copies, of one parameter at a time, and what it makes of them is rounded to the nearest bf16. So the arithmetic
is the kernel's own.

The second moment can only fall by 1 - beta2 in a step. Where that is less than half of bf16's distance to the next
lower number, rounding takes it back, and the moment stays for ever at the highest gradient that it has seen: the
options refuse such a beta2 (`rules.MOMENTS_CAN_DECAY`).
"""

from typing import Any

import torch
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")


class Bf16MomentsAdamW(torch.optim.AdamW):
    """The state of each parameter must be there before the first step, with its moments in bf16."""

    @torch.no_grad()
    def step(self) -> None:  # without closure: nobody here has one
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        first, second = (state[moment].float() for moment in MOMENTS)
        beta1, beta2 = group["betas"]
        adamw(
            [parameter],
            [parameter.grad],
            [first],
            [second],
            [],
            [state["step"]],
            fused=True,
            # A scalar that the kernel looks at: where it is 1, nothing changes.
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for moment, updated in zip(MOMENTS, (first, second), strict=True):
            state[moment].copy_(updated)
