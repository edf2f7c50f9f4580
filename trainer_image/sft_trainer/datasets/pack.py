"""Puts whole samples side by side into packs, so that little of a pack stays empty.

In: the samples' lengths. Out: which samples share a pack. Pure; called by `prepare` with all lengths of all datasets,
since packing in windows leaves more room empty.
"""

from dataclasses import dataclass

import numpy as np

from sft_trainer.datasets.order import permutation
from sftjob.options import PackLevel


@dataclass(frozen=True)
class Packs:
    members: np.ndarray
    """[samples] int64: indices into the lengths, pack after pack."""
    offsets: np.ndarray
    """[packs + 1] int64: where packs begin in `members`."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.members[self.offsets[pack] : self.offsets[pack + 1]]


def pack_samples(lengths: np.ndarray, *, max_length: int, level: PackLevel, seed: int) -> Packs:
    """Each sample in exactly one pack of at most `max_length` tokens.

    The packs are shuffled: best-fit-decreasing makes those of long samples first.
    """
    if level == "none":
        members, counts = np.arange(len(lengths)), np.ones(len(lengths), dtype=np.int64)
    else:
        members, counts = _best_fit_decreasing(lengths, max_length)
    order = permutation(len(counts), seed=(seed,))
    starts = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64)[order] if len(counts) else counts
    counts = counts[order]
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    moved = np.repeat(starts - offsets[:-1], counts) + np.arange(len(members))
    return Packs(members=members[moved], offsets=offsets)


def _best_fit_decreasing(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples in the order of packs, and how many each pack has (Johnson, 1973).

    Bit r of `rooms` says that a pack with r tokens left is in `packs_with[r]`: the best fit for a length is the lowest
    bit from there on. All samples of one length go together: once one of them is placed, its pack is still the best
    fit for the next, as long as that fits.
    """
    by_length = np.argsort(-lengths, kind="stable")
    histogram = np.bincount(lengths, minlength=capacity + 1)
    assert len(histogram) == capacity + 1, "a sample is longer than a pack"
    packs_with: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0
    pack_of_run: list[int] = []
    run_lengths: list[int] = []
    packs = 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        while left:
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                pack = packs_with[room].pop()
                if not packs_with[room]:
                    rooms ^= 1 << room
            else:
                room, pack = capacity, packs
                packs += 1
            placed = min(left, room // length)
            left -= placed
            pack_of_run.append(pack)
            run_lengths.append(placed)
            room -= placed * length
            if room:
                packs_with[room].append(pack)
                rooms |= 1 << room
    pack_of_sample = np.repeat(np.array(pack_of_run, dtype=np.int64), np.array(run_lengths, dtype=np.int64))
    members = by_length[np.argsort(pack_of_sample, kind="stable")]
    return members, np.bincount(pack_of_sample, minlength=packs)
