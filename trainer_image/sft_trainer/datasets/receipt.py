"""The receipt of prepared data: what its samples come to, by dataset and in sum, and what was left out.

`prepare` counts the samples when they are packed, and adds on each start what the caches of their tokens know. Pure.
"""

import numpy as np

from sft_trainer.datasets.bad_rows import BadRows
from sft_trainer.datasets.cache import TokenCache
from sft_trainer.datasets.config import DatasetEntry
from sftjob.base import Record
from sftjob.receipt import MOST_TOLD, Counts, DataReceipt, DatasetReceipt, bounded


class SampleCounts(Record):
    """Of the samples that are packed, those of one dataset."""

    samples: int
    tokens: int
    trained_tokens: int
    truncated: int


class PackCounts(Record):
    packs: int
    cut_by_packs: int
    datasets: list[SampleCounts]


def count_samples(
    drawn: np.ndarray, *, first_ids: list[int], lengths: np.ndarray, trained: np.ndarray, is_cut: np.ndarray
) -> list[SampleCounts]:
    """For each dataset. All [draws]: the samples' ids, their tokens, their trained tokens, whether they were cut."""
    dataset = np.searchsorted(first_ids, drawn, side="right") - 1
    counts = []
    for index in range(len(first_ids)):
        own = dataset == index
        counts.append(
            SampleCounts(
                samples=int(np.count_nonzero(own)),
                tokens=int(lengths[own].sum()),
                trained_tokens=int(trained[own].sum()),
                truncated=int(is_cut[own].sum()),
            )
        )
    return counts


def receipt_of(
    counts: PackCounts, *, entries: list[DatasetEntry], caches: list[TokenCache], bad_rows: BadRows
) -> DataReceipt:
    """`bad_rows` are those of these datasets."""
    datasets = [
        DatasetReceipt(
            name=entry.dataset.name,
            format=cache.meta.key.row_format,
            dropped=cache.meta.dropped,
            thoughtless=cache.meta.thoughtless,
            bad_lines=cache.meta.bad_rows,
            **own.model_dump(),
        )
        for own, entry, cache in zip(counts.datasets, entries, caches, strict=True)
    ]
    return _sum(datasets, packs=counts.packs, cut_by_packs=counts.cut_by_packs, told=[*map(bounded, bad_rows.told)])


def with_held_out(trained: DataReceipt, held: DataReceipt) -> DataReceipt:
    """`held` are other samples of the same datasets."""
    datasets = [
        own.model_copy(update={"truncated": own.truncated + other.truncated, "held_out": other.samples})
        for own, other in zip(trained.datasets, held.datasets, strict=True)
    ]
    return _resummed(trained, datasets, trained.first_bad_lines)


def with_evaluated(trained: DataReceipt, evaluated: DataReceipt) -> DataReceipt:
    """`evaluated` are other datasets, none of whose samples is trained on."""
    others = [
        other.model_copy(update={"samples": 0, "tokens": 0, "trained_tokens": 0, "held_out": other.samples})
        for other in evaluated.datasets
    ]
    told = [*trained.first_bad_lines, *evaluated.first_bad_lines]
    return _resummed(trained, [*trained.datasets, *others], told)


def _resummed(of: DataReceipt, datasets: list[DatasetReceipt], told: list[str]) -> DataReceipt:
    return _sum(datasets, packs=of.packs, cut_by_packs=of.cut_by_packs, told=told)


def _sum(datasets: list[DatasetReceipt], *, packs: int, cut_by_packs: int, told: list[str]) -> DataReceipt:
    return DataReceipt(
        packs=packs,
        cut_by_packs=cut_by_packs,
        first_bad_lines=told[:MOST_TOLD],
        datasets=datasets,
        **{count: sum(getattr(dataset, count) for dataset in datasets) for count in Counts.model_fields},
    )
