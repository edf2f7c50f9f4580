"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math

from sftjob.options import LRConfig


def warmup_steps(config: LRConfig, *, total_steps: int) -> int:
    if config.warmup_ratio >= 1:
        return int(config.warmup_ratio)
    return round(config.warmup_ratio * total_steps)


def learning_rate(config: LRConfig, *, peak: float, step: int, total_steps: int) -> float:
    """Of optimiser step `step`, 1 to `total_steps`: the peak at the end of the warm-up, `lr_min` at the last step.

    Without a warm-up the first step has the peak, also where it is the only one. Nothing rises after the warm-up: where
    the peak is below the default `lr_min`, it stays.
    """
    warmup = warmup_steps(config, total_steps=total_steps)
    if step < warmup:
        return peak * step / warmup
    if config.lr_type == "constant":
        return peak
    highest = max(1, warmup)
    done = (step - highest) / max(1, total_steps - highest)
    lowest = min(config.lr_min, peak)
    if config.lr_type == "linear":
        return lowest + (peak - lowest) * (1 - done)
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * done))
