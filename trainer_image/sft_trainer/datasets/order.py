"""Permutations that depend on nothing but their seed.

`prepare` draws a fraction of a dataset with them, `pack` shuffles packs, `batch` orders an epoch.
"""

import numpy as np


def permutation(length: int, *, seed: tuple[int, ...]) -> np.ndarray:
    """[length] int64. numpy promises the raw numbers of a bit generator for ever, but not `Generator.permutation`:
    a run must resume in the same order under a newer numpy.
    """
    raw = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(length)
    return np.argsort(raw, kind="stable")
