"""Which steps change nothing because of their gradient's norm. Pure; called by the loop.

The device decides, before each update; the host hears of it later and counts.
"""

import math
from dataclasses import dataclass

import torch

_MOST_NON_FINITE = 3
"""In a row. One overflow passes; a run that diverged never has another finite step."""


@dataclass(frozen=True)
class Verdict:
    why: str | None
    """The step is skipped; None where it is not."""
    non_finite_steps: int
    """In a row, this one included."""

    @property
    def skips(self) -> bool:
        return self.why is not None

    @property
    def is_fatal(self) -> bool:
        return self.non_finite_steps >= _MOST_NON_FINITE


def skips(norm: torch.Tensor, *, threshold: float | None) -> torch.Tensor:
    """1.0 where the step is skipped, else 0.0: a scalar beside `norm`, which is global and before clipping."""
    skipped = ~norm.isfinite()
    if threshold is not None:
        # In double precision, as the threshold is: rounded, it could lie on the other side of the norm.
        skipped |= norm.double() > threshold
    return skipped.float()


def judge_gradient(norm: float, *, skipped: bool, threshold: float | None, non_finite_before: int) -> Verdict:
    """`skipped` as the device decided; `non_finite_before` counts the steps in a row that end at the last one."""
    if not math.isfinite(norm):
        return Verdict(f"its gradient norm is {norm}", non_finite_before + 1)
    if skipped:
        return Verdict(f"its gradient norm {norm:.4g} is above skipGradNormThreshold {threshold:g}", 0)
    return Verdict(None, 0)
