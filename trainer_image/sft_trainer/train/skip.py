"""Which steps change nothing because of their gradient's norm. Pure; called by the loop before each update."""

import math
from dataclasses import dataclass

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


def judge_gradient(norm: float, *, threshold: float | None, non_finite_before: int) -> Verdict:
    """`norm` is global and before clipping; `non_finite_before` counts the steps in a row that end at the last one."""
    if not math.isfinite(norm):
        return Verdict(f"its gradient norm is {norm}", non_finite_before + 1)
    if threshold is not None and norm > threshold:
        return Verdict(f"its gradient norm {norm:.4g} is above skipGradNormThreshold {threshold:g}", 0)
    return Verdict(None, 0)
