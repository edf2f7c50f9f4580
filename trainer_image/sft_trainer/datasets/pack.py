"""Puts samples side by side into packs, so that little of a pack stays empty.

In: the samples' lengths. Out: which piece of which sample stands in which pack. Pure; called by `prepare` with all
lengths of all datasets, since packing in windows leaves more room empty.
"""

from dataclasses import dataclass

import numpy as np

from sft_trainer.datasets.order import permutation
from sftjob.options import PackLevel


@dataclass(frozen=True)
class Packs:
    """A piece is a run of a sample's tokens within one pack: the whole sample, unless `hard` or `split` cuts it."""

    members: np.ndarray
    """[pieces]: the sample of each piece, pack after pack."""
    begins: np.ndarray
    """[pieces]: tokens of its sample that stand before it, in another pack."""
    lengths: np.ndarray
    """[pieces]: tokens"""
    offsets: np.ndarray
    """[packs + 1] int64: where packs begin in the three above."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pieces(self, pack: int) -> list[tuple[int, int, int]]:
        """Sample, begin and length of each piece."""
        of_pack = slice(self.offsets[pack], self.offsets[pack + 1])
        members, begins, lengths = self.members[of_pack], self.begins[of_pack], self.lengths[of_pack]
        return list(zip(members.tolist(), begins.tolist(), lengths.tolist(), strict=True))


def pack_samples(lengths: np.ndarray, *, max_length: int, level: PackLevel, seed: int) -> Packs:
    """Each token in exactly one pack of at most `max_length` tokens.

    The packs are shuffled: best-fit-decreasing makes those of long samples first.
    """
    if level == "hard":
        members, begins, sizes, counts = _cut_at_pack_ends(lengths, max_length, seed)
    else:
        assert not len(lengths) or lengths.max() <= max_length, "a sample is longer than a pack"
        if level == "none":
            members, counts = np.arange(len(lengths)), np.ones(len(lengths), dtype=np.int64)
        else:
            members, counts = _best_fit_decreasing(lengths, max_length)
        begins, sizes = np.zeros_like(members), lengths[members]
    order = permutation(len(counts), seed=(seed,))
    starts = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64)[order] if len(counts) else counts
    counts = counts[order]
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    moved = np.repeat(starts - offsets[:-1], counts) + np.arange(len(members))
    return Packs(members=members[moved], begins=begins[moved], lengths=sizes[moved], offsets=offsets)


def cut_to(most: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces of at most so many tokens, each as long as may be: whose they are, where they begin in it, lengths."""
    counts = -(-lengths // most)
    members = np.repeat(np.arange(len(lengths)), counts)
    begins = (np.arange(len(members)) - np.repeat(np.cumsum(counts) - counts, counts)) * most[members]
    return members, begins, np.minimum(most[members], lengths[members] - begins)


def _best_fit_decreasing(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples in the order of packs, and how many each pack has (Johnson, 1973).

    Bit r of `rooms` says that packs with r tokens left are in `packs_with[r]`: the best fit for a length is the lowest
    bit from there on. All samples of one length go together, into all packs of one room: once one of them is placed,
    its pack is still the best fit for the next, as long as that fits, and after it a pack with the same room is.
    """
    # Lengths as 16-bit numbers, where they fit, are sorted by radix: five times as fast.
    by_length = np.argsort((capacity - lengths).astype(np.min_scalar_type(capacity)), kind="stable")
    histogram = np.bincount(lengths, minlength=capacity + 1)
    packs_with: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0
    pack_of_run: list[int] = []
    run_lengths: list[int] = []
    packs = 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        while left:
            fitting = rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else capacity
            each = room // length
            wanted = -(-left // each)
            if fitting:
                open_packs = packs_with[room]
                taken = open_packs[: -wanted - 1 : -1]
                del open_packs[-wanted:]
                if not open_packs:
                    rooms ^= 1 << room
            else:
                taken = list(range(packs, packs + wanted))
                packs += wanted
            runs = [each] * len(taken)
            runs[-1] = min(each, left - each * (len(taken) - 1))
            left -= each * (len(taken) - 1) + runs[-1]
            pack_of_run += taken
            run_lengths += runs
            for some, placed in ((taken[:-1], each), (taken[-1:], runs[-1])):
                rest = room - placed * length
                if some and rest:
                    packs_with[rest] += some
                    rooms |= 1 << rest
    pack_of_sample = np.repeat(np.array(pack_of_run, dtype=np.int64), np.array(run_lengths, dtype=np.int64))
    members = by_length[np.argsort(pack_of_sample, kind="stable")]
    return members, np.bincount(pack_of_sample, minlength=packs)


def _cut_at_pack_ends(
    lengths: np.ndarray, capacity: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Members, begins and lengths of the pieces, and how many each pack has: the samples in a seeded order as one
    text, in which a piece ends where a sample or a pack does."""
    order = permutation(len(lengths), seed=(seed, 3))
    ends = np.cumsum(lengths[order])
    total = int(ends[-1]) if len(ends) else 0
    # Two sorted runs: a stable sort merges them, where `union1d` takes 150 times as long.
    piece_ends = np.sort(np.concatenate((ends, np.arange(capacity, total, capacity))), kind="stable")
    piece_ends = piece_ends[np.diff(piece_ends, prepend=0) > 0]
    piece_begins = np.concatenate(([0], piece_ends))[:-1]
    place = np.searchsorted(ends, piece_begins, side="right")
    members = order[place]
    begins = piece_begins - (ends[place] - lengths[members])
    return members, begins, piece_ends - piece_begins, np.bincount(piece_begins // capacity)
