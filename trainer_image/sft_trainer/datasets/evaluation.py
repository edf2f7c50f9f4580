"""Which samples are evaluated instead of trained.

In: the ids of the samples that a run would train on. Out: those that it does train on, and those that it never does. Of
datasets that are named to be evaluated: whether they are none of those that are trained on. Called by `prepare`.
"""

from pathlib import Path

import numpy as np

from sft_trainer.datasets.cache import TokenCache
from sft_trainer.datasets.config import DatasetEntry
from sft_trainer.datasets.files import data_files
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


def refuse_trained_files(evaluated: list[DatasetEntry], *, trained: list[DatasetEntry]) -> None:
    """By where they lie, before anything is read. Raises JobFailure(INVALID_CONFIGURATION)."""
    for held in evaluated:
        for one in trained:
            if shared := _files(held) & _files(one):
                raise _trained_too(held, one, why=f"both read {min(shared)}")


def refuse_trained_rows(
    evaluated: list[DatasetEntry],
    held_caches: list[TokenCache],
    *,
    trained: list[DatasetEntry],
    caches: list[TokenCache],
) -> None:
    """By their content: a copy lies elsewhere. Raises JobFailure(INVALID_CONFIGURATION)."""
    by_content = {cache.meta.key.content: one for one, cache in zip(trained, caches, strict=True)}
    for held, cache in zip(evaluated, held_caches, strict=True):
        if one := by_content.get(cache.meta.key.content):
            raise _trained_too(held, one, why="the content is the same")


def _files(entry: DatasetEntry) -> set[Path]:
    return {file.resolve() for file in data_files(entry.dataset.anno_path)}


def _trained_too(held: DatasetEntry, trained: DatasetEntry, *, why: str) -> JobFailure:
    return JobFailure(
        Reason.INVALID_CONFIGURATION,
        f"{held.dataset.anno_path}: is to be evaluated, but is trained on as {trained.dataset.anno_path} ({why}); name "
        "another file, or hold out a part of the training data, with spec.data.evaluation.fraction",
    )
