"""Packs: each sample once, none too full, hardly any room left, order free of length."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_trainer.datasets.pack import Packs, pack_samples

LENGTHS = st.lists(st.integers(1, 60), max_size=80)


def members_of(packs: Packs, pack: int) -> list[int]:
    return [sample for sample, _, _ in packs.pieces(pack)]


@given(LENGTHS, st.integers(60, 70), st.sampled_from(["soft", "none"]), st.integers(0, 9))
def test_each_sample_is_in_exactly_one_pack_and_no_pack_is_too_full(lengths, max_length, level, seed) -> None:
    packs = pack_samples(np.array(lengths, dtype=np.int64), max_length=max_length, level=level, seed=seed)
    members = [members_of(packs, pack) for pack in range(len(packs))]
    assert sorted(sample for pack in members for sample in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[sample] for sample in pack) <= max_length for pack in members)
    assert level == "soft" or all(len(pack) == 1 for pack in members)
    pieces = [piece for pack in range(len(packs)) for piece in packs.pieces(pack)]
    assert sorted(pieces) == [(sample, 0, length) for sample, length in enumerate(lengths)]


@given(LENGTHS, st.integers(60, 70), st.integers(0, 9))
def test_hard_packs_are_full_but_one_and_have_each_token_once(lengths, max_length, seed) -> None:
    packs = pack_samples(np.array(lengths, dtype=np.int64), max_length=max_length, level="hard", seed=seed)
    sizes = sorted(sum(size for _, _, size in packs.pieces(pack)) for pack in range(len(packs)))
    assert sizes[1:] == [max_length] * len(sizes[1:])
    assert sum(sizes) == sum(lengths)
    assert all(packs.lengths > 0)
    tokens = [
        (sample, token)
        for pack in range(len(packs))
        for sample, begin, size in packs.pieces(pack)
        for token in range(begin, begin + size)
    ]
    assert sorted(tokens) == [(sample, token) for sample, length in enumerate(lengths) for token in range(length)]


def test_a_packs_end_cuts_a_sample_and_the_next_pack_begins_with_the_rest() -> None:
    packs = pack_samples(np.array([6, 6, 6]), max_length=9, level="hard", seed=0)
    first, cut, last = (sample for sample, begin, size in sorted_pieces(packs) if begin == 0)
    assert sorted_pieces(packs) == [(first, 0, 6), (cut, 0, 3), (cut, 3, 3), (last, 0, 6)]


def sorted_pieces(packs: Packs) -> list[tuple[int, int, int]]:
    """In the order of the text that was cut: the pack with a sample's rest comes after the one with its beginning."""
    in_order = sorted(range(len(packs)), key=lambda pack: packs.pieces(pack)[0][1])
    return [piece for pack in in_order for piece in packs.pieces(pack)]


def test_the_best_fit_is_taken() -> None:
    # 7 and 6 open packs with 3 and 4 left; 3 fits both and goes where nothing stays empty.
    packs = pack_samples(np.array([7, 6, 3]), max_length=10, level="soft", seed=0)
    assert sorted(sorted(members_of(packs, pack)) for pack in range(len(packs))) == [[0, 2], [1]]


def test_packs_of_a_large_set_are_full_and_quickly_made() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6.0, 0.8, 200_000), 16, 4096).astype(np.int64)
    started = time.process_time()
    packs = pack_samples(lengths, max_length=4096, level="soft", seed=1)
    assert time.process_time() - started < 5
    assert np.array_equal(np.sort(packs.members), np.arange(200_000))
    filled = np.add.reduceat(lengths[packs.members], packs.offsets[:-1])
    assert filled.max() <= 4096
    assert filled.mean() / 4096 > 0.999


def test_a_packs_place_tells_nothing_about_its_samples_lengths() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6.0, 0.8, 20_000), 16, 4096).astype(np.int64)
    packs = pack_samples(lengths, max_length=4096, level="soft", seed=1)
    longest = np.maximum.reduceat(lengths[packs.members], packs.offsets[:-1])
    assert abs(np.corrcoef(longest, np.arange(len(packs)))[0, 1]) < 0.1


@pytest.mark.parametrize("level", ["soft", "none"])
def test_the_seed_alone_decides_the_order(level) -> None:
    lengths = np.arange(1, 60)
    first, same, other = (pack_samples(lengths, max_length=64, level=level, seed=seed) for seed in (1, 1, 2))
    assert first.members.tolist() == same.members.tolist()
    assert first.members.tolist() != other.members.tolist()
    assert sorted(first.members.tolist()) == sorted(other.members.tolist())


def test_the_seed_decides_where_hard_packs_cut() -> None:
    cuts = [
        pack_samples(np.arange(1, 60), max_length=64, level="hard", seed=seed).begins.tolist() for seed in (1, 1, 2)
    ]
    assert cuts[0] == cuts[1] != cuts[2]


def test_the_arrangement_is_these_numbers_under_any_version() -> None:
    """A run that began under an older version must go on with its packs."""
    lengths = np.array([5, 3, 9, 2, 7, 3, 5, 3, 1, 4])
    soft, hard = (pack_samples(lengths, max_length=12, level=level, seed=3) for level in ("soft", "hard"))
    wholes = [[sample for sample, _, _ in soft.pieces(pack)] for pack in range(len(soft))]
    assert wholes == [[2, 5], [4, 0], [7, 3, 8], [6, 9, 1]]
    assert [hard.pieces(pack) for pack in range(len(hard))] == [
        [(0, 0, 5), (8, 0, 1), (7, 0, 3), (3, 0, 2), (1, 0, 1)],
        [(1, 1, 2), (9, 0, 4), (6, 0, 5), (5, 0, 1)],
        [(2, 3, 6)],
        [(5, 1, 2), (4, 0, 7), (2, 0, 3)],
    ]
