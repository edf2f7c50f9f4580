"""Which samples are evaluated instead of trained.

In: the ids of the samples that a run would train on. Out: those that it does train on, and those that it never does.
Pure; called by `prepare`.
"""

import numpy as np

from sft_trainer.datasets.order import permutation
from sftjob.failure import JobFailure, Reason


def hold_out(drawn: np.ndarray, *, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What is left of `drawn` [draws], and the held-out ids, each once: a sample that is drawn twice leaves both times.

    Raises JobFailure where the fraction is less than half a sample.
    """
    samples = np.unique(drawn)
    count = round(fraction * len(samples))
    if count == 0:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"spec.data.evaluation.fraction: {fraction} of {len(samples)} samples is none of them; "
            "raise it, or name datasets to evaluate on",
        )
    held = np.sort(samples[permutation(len(samples), seed=(seed, 3))[:count]])
    return drawn[~np.isin(drawn, held)], held
