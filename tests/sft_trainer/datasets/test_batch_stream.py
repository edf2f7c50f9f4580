"""What each rank gets at each step: every sample once an epoch, the same whatever the number of ranks."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft_trainer.datasets.batch import BatchStream
from sft_trainer.datasets.cache import TokenCache
from sft_trainer.datasets.pack import Packs
from sft_trainer.datasets.pack_cache import StoredPacks
from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.datasets.receipt import PackCounts
from sftjob.receipt import DataReceipt

RECEIPT = DataReceipt(samples=0, tokens=0, trained_tokens=0, packs=0)  # not read by a stream


def data(samples: list[tuple[list[int], list[int]]], packs: list[list[int]]) -> PreparedData:
    """Samples as tokens and flags, in the given packs."""
    return in_pieces(samples, [[(sample, 0, len(samples[sample][0])) for sample in pack] for pack in packs])


def in_pieces(samples: list[tuple[list[int], list[int]]], packs: list[list[tuple[int, int, int]]]) -> PreparedData:
    """Each pack as sample, begin and length of its pieces."""
    lengths = [len(tokens) for tokens, _ in samples]
    trained = [sum(flags) for _, flags in samples]
    cache = TokenCache(
        meta=None,  # type: ignore[arg-type]
        tokens=np.array([token for tokens, _ in samples for token in tokens], dtype=np.uint32),
        trained=np.array([flag for _, flags in samples for flag in flags], dtype=np.bool_),
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        trained_counts=np.array(trained),
        is_cut=np.zeros(len(samples)),
    )
    pieces = [piece for pack in packs for piece in pack]
    sizes = np.array([size for _, _, size in pieces])
    ends = np.cumsum([len(pack) for pack in packs])
    labels = [sum(samples[sample][1][begin + 1 : begin + size + 1]) for sample, begin, size in pieces]
    starts = ends - [len(pack) for pack in packs]
    return PreparedData(
        caches=[cache],
        first_ids=[0],
        stored=StoredPacks(
            packs=Packs(
                members=np.array([sample for sample, _, _ in pieces]),
                begins=np.array([begin for _, begin, _ in pieces]),
                lengths=sizes,
                offsets=np.concatenate(([0], ends)),
            ),
            tokens=np.add.reduceat(sizes, starts),
            trained=np.add.reduceat(labels, starts),
            attention=np.add.reduceat(sizes**2, starts),
            counts=PackCounts(packs=0, cut_by_packs=0, datasets=[]),
        ),
        digest="",
        receipt=RECEIPT,
    )


ONE_PACK = data([([11, 12, 13, 14], [0, 0, 1, 1]), ([21, 22], [0, 1])], [[0, 1]])


def many(packs: int) -> PreparedData:
    """Pack n holds sample n: two tokens, n and 100 + n, the second trained."""
    return data([([number, 100 + number], [0, 1]) for number in range(packs)], [[number] for number in range(packs)])


def stream(prepared: PreparedData, *, batch: int = 1, world: int = 1, rank: int = 0, seed: int = 3, **options):
    return BatchStream(prepared, seed=seed, global_batch_size=batch, world_size=world, rank=rank, **options)


def test_a_pack_is_documents_side_by_side_with_labels_that_never_cross_them() -> None:
    [batch] = stream(ONE_PACK).micro_batches(1)
    assert batch.input_ids.tolist() == [[11, 12, 13, 14, 21, 22]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.labels.tolist() == [[-100, 13, 14, -100, 22, -100]]
    assert batch.cu_seqlens.tolist() == [0, 4, 6]
    assert [tensor.dtype for tensor in (batch.input_ids, batch.position_ids, batch.labels)] == [torch.int64] * 3
    assert batch.cu_seqlens.dtype == torch.int32


def test_pads_are_a_document_of_their_own_that_is_not_trained_and_has_no_late_positions() -> None:
    [batch] = stream(ONE_PACK, pad_to=9).micro_batches(1)
    assert batch.input_ids.tolist() == [[11, 12, 13, 14, 21, 22, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 0, 0, 0]]
    assert batch.labels.tolist() == [[-100, 13, 14, -100, 22, -100, -100, -100, -100]]
    assert batch.cu_seqlens.tolist() == [0, 4, 6, 9]
    [full] = stream(ONE_PACK, pad_to=6).micro_batches(1)
    assert full.cu_seqlens.tolist() == [0, 4, 6]


def test_for_the_model_pads_behind_a_document_alone_are_its_end() -> None:
    [alone] = stream(of_lengths([[3]]), pad_to=9).micro_batches(1)
    [two] = stream(ONE_PACK, pad_to=9).micro_batches(1)
    assert alone.cu_seqlens.tolist() == [0, 3, 9]
    assert alone.to(torch.device("cpu")).cu_seqlens.tolist() == [0, 9]
    assert two.to(torch.device("cpu")).cu_seqlens.tolist() == [0, 4, 6, 9]


def test_the_plan_knows_the_steps_trained_tokens_as_the_labels_of_all_ranks_count_them() -> None:
    assert (stream(ONE_PACK).trained_tokens(1), stream(ONE_PACK).tokens(1)) == (3, 6)
    prepared = data([([1] * (n + 2), [0] + [1] * (n + 1)) for n in range(6)], [[0, 1], [2], [3, 4], [5]])
    ranks = [stream(prepared, batch=2, world=2, rank=rank, total_epoch=1, pad_to=40) for rank in (0, 1)]
    for step in (1, 2):
        labels = [batch.labels for rank in ranks for batch in rank.micro_batches(step)]
        assert sum(int((tensor != -100).sum()) for tensor in labels) == ranks[0].trained_tokens(step)
        assert ranks[0].trained_tokens(step) == ranks[1].trained_tokens(step)


def test_each_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    whole = stream(many(10), batch=5)
    epochs = [whole.sample_ids(step) + whole.sample_ids(step + 1) for step in (1, 3, 5)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_the_seed_and_on_nothing_that_happened_before() -> None:
    first, other = stream(many(20), batch=4), stream(many(20), batch=4, seed=4)
    ids = [first.sample_ids(step) for step in range(1, 12)]
    assert [stream(many(20), batch=4).sample_ids(step) for step in range(11, 0, -1)] == ids[::-1]
    assert [other.sample_ids(step) for step in range(1, 12)] != ids


def test_the_order_is_these_numbers_under_any_version() -> None:
    """A run that began under an older version must go on in its order."""
    assert stream(many(8), batch=8).sample_ids(1) == [4, 0, 5, 3, 7, 6, 1, 2]


def test_a_step_may_span_two_epochs() -> None:
    counts = Counter(sample for step in (1, 2, 3) for sample in stream(many(6), batch=4).sample_ids(step))
    assert counts == dict.fromkeys(range(6), 2)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_number_of_ranks_trains_the_same_samples_in_a_step(world) -> None:
    ranks = [stream(many(10), batch=4, world=world, rank=rank) for rank in range(world)]
    for step in range(1, 8):
        micro_batches = [rank.micro_batches(step) for rank in ranks]
        assert {len(batches) for batches in micro_batches} == {4 // world}
        ids = sorted(int(batch.input_ids[0, 0]) for batches in micro_batches for batch in batches)
        assert ids == sorted(stream(many(10), batch=4).sample_ids(step))
        assert all(rank.sample_ids(step) == ranks[0].sample_ids(step) for rank in ranks)


def test_what_the_last_step_lacks_are_untrained_pads_so_that_ranks_stay_in_step() -> None:
    ranks = [stream(many(5), batch=4, world=2, rank=rank, total_epoch=1) for rank in (0, 1)]
    assert ranks[0].total_steps(1) == 2
    [real, dummy], [absent, missing] = (rank.micro_batches(2) for rank in ranks)
    assert real.labels.tolist() == [[real.input_ids[0, 1].item(), -100]]
    for batch in (dummy, absent, missing):
        assert batch.labels.tolist() == [[-100] * batch.input_ids.shape[1]]
        assert batch.cu_seqlens.tolist() == [0, batch.input_ids.shape[1]]
    assert ranks[1].sample_ids(2) == [int(real.input_ids[0, 0])]
    assert sorted(ranks[0].sample_ids(1) + ranks[0].sample_ids(2)) == [0, 1, 2, 3, 4]
    assert (ranks[0].trained_tokens(2), ranks[0].tokens(2)) == (1, 2)
    [_, padded] = stream(many(5), batch=4, world=2, total_epoch=1, pad_to=16).micro_batches(2)
    assert padded.input_ids.shape == (1, 16)


def test_epochs_and_steps_are_counted() -> None:
    ends = stream(many(5), batch=2, total_epoch=3)
    assert [ends.total_steps(total_epoch) for total_epoch in (1, 2, 3)] == [3, 5, 8]
    assert [ends.epoch(step) for step in (1, 5, 8)] == [0.4, 2.0, 3.0]


def test_where_a_packs_end_cuts_a_sample_the_next_packs_first_token_is_learnt_before_the_cut() -> None:
    sample = ([11, 12, 13, 14, 15], [0, 1, 1, 1, 1])
    cut = in_pieces([sample, ([21, 22], [0, 1])], [[(0, 0, 3)], [(0, 3, 2), (1, 0, 2)]])
    batches = sorted(stream(cut, batch=2).micro_batches(1), key=lambda batch: batch.input_ids[0, 0].item())
    assert [batch.input_ids.tolist() for batch in batches] == [[[11, 12, 13]], [[14, 15, 21, 22]]]
    assert [batch.labels.tolist() for batch in batches] == [[[12, 13, 14]], [[15, -100, 22, -100]]]
    assert [batch.position_ids.tolist() for batch in batches] == [[[0, 1, 2]], [[0, 1, 0, 1]]]
    assert [batch.cu_seqlens.tolist() for batch in batches] == [[0, 3], [0, 2, 4]]
    assert stream(cut, batch=2).trained_tokens(1) == 5


def of_lengths(packs: list[list[int]]) -> PreparedData:
    """Packs of samples with these lengths; sample n has the token n only."""
    lengths = [length for pack in packs for length in pack]
    numbers = iter(range(len(lengths)))
    return data(
        [([n] * length, [1] * length) for n, length in enumerate(lengths)], [[next(numbers) for _ in p] for p in packs]
    )


def test_packs_are_dealt_so_that_ranks_spend_as_long_in_attention_in_each_micro_batch() -> None:
    # Six packs of eight tokens, that cost 64, 32, 16, 8, 50, 34.
    packs = of_lengths([[8], [4, 4], [2] * 4, [1] * 8, [7, 1], [5, 3]])
    ranks = [stream(packs, batch=6, world=2, rank=rank) for rank in (0, 1)]
    costs = [[int((b.cu_seqlens.diff() ** 2).sum()) for b in rank.micro_batches(1)] for rank in ranks]
    assert costs == [[64, 32, 8], [50, 34, 16]]


def test_with_pads_their_cost_counts() -> None:
    # Padded to 9: 64 + 1 and 16 + 25 and 1 + 64 and 36 + 9.
    packs = of_lengths([[8], [4], [1], [6]])
    ranks = [stream(packs, batch=4, world=2, rank=rank, pad_to=9) for rank in (0, 1)]
    costs = [[int((b.cu_seqlens.diff() ** 2).sum()) for b in rank.micro_batches(1)] for rank in ranks]
    assert sorted(costs) == [[65, 41], [65, 45]]


def test_samples_alone_are_padded_to_less_than_twice_their_length_and_to_few_lengths() -> None:
    lengths = [1000, 513, 512, 300, 257, 129, 128, 20]
    alone = stream(of_lengths([[n] for n in lengths]), batch=9, total_epoch=1, pad_to=1000, pads_by_halves=True)
    padded = [(sum(map(len, documents_of(b))), b.input_ids.shape[1]) for b in alone.micro_batches(1)]
    assert sorted(padded, reverse=True) == [
        (1000, 1000), (513, 1000), (512, 1000), (300, 500), (257, 500), (129, 250), (128, 250), (20, 250), (0, 250),
    ]  # fmt: skip
    # Below 128 there is nothing to halve.
    [short] = stream(of_lengths([[3]]), pad_to=100, pads_by_halves=True).micro_batches(1)
    assert short.cu_seqlens.tolist() == [0, 3, 100]
    # Memory that has run out halves what is left.
    [less] = stream(of_lengths([[20]]), pad_to=1000, pads_by_halves=True).micro_batches(1, halvings=5)
    assert less.cu_seqlens.tolist() == [0, 20, 31]


def test_with_pads_to_a_half_their_cost_counts() -> None:
    # 256 and, of 512, 300 and 257: 256 ** 2, 300 ** 2 + 212 ** 2, 257 ** 2 + 255 ** 2; then 128 ** 2.
    packs = of_lengths([[256], [300], [257], [128]])
    ranks = [stream(packs, batch=4, world=2, rank=rank, pad_to=512, pads_by_halves=True) for rank in (0, 1)]
    costs = [[int((b.cu_seqlens.diff() ** 2).sum()) for b in rank.micro_batches(1)] for rank in ranks]
    assert costs == [[134944, 16384], [131074, 65536]]


@given(
    st.lists(st.lists(st.integers(2, 20), min_size=1, max_size=4), min_size=8, max_size=16),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 9),
)
def test_no_two_ranks_are_further_apart_than_the_packs_of_one_micro_batch(lengths, world, seed) -> None:
    ranks = [stream(of_lengths(lengths), batch=8, world=world, rank=rank, seed=seed) for rank in range(world)]
    micro_batches = [rank.micro_batches(2) for rank in ranks]
    costs = [[int((b.cu_seqlens.diff() ** 2).sum()) for b in batches] for batches in micro_batches]
    spent = [sum(of_rank) for of_rank in costs]
    assert max(spent) - min(spent) <= max(max(column) - min(column) for column in zip(*costs, strict=True))
    trained = sorted(b.input_ids.tolist() for batches in micro_batches for b in batches)
    alone = stream(of_lengths(lengths), batch=8, seed=seed)
    assert trained == sorted(b.input_ids.tolist() for b in alone.micro_batches(2))


def documents_of(*batches) -> list[list[int]]:
    """Sorted, without pads."""
    found = []
    for batch in batches:
        ids = batch.input_ids[0].split(batch.cu_seqlens.diff().tolist())
        found += [document.tolist() for document in ids][: len(batch.pieces)]
    return sorted(found)


@given(
    st.lists(st.lists(st.integers(2, 20), min_size=1, max_size=6), min_size=4, max_size=9),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 9),
    st.booleans(),
)
def test_halved_packs_are_the_same_documents_in_parts_as_many_on_every_rank(lengths, world, halvings, padded) -> None:
    prepared, longest = of_lengths(lengths), 128 if padded else max(map(sum, lengths))
    options = {"batch": 4, "world": world, "total_epoch": 1, "pad_to": 128 if padded else None}
    ranks = [stream(prepared, rank=rank, **options) for rank in range(world)]
    for step in range(1, ranks[0].total_steps(1) + 1):
        whole = [batch for rank in ranks for batch in rank.micro_batches(step)]
        halved = [rank.micro_batches(step, halvings=halvings) for rank in ranks]
        assert len({len(batches) for batches in halved}) == 1
        parts = [batch for batches in halved for batch in batches]
        assert documents_of(*parts) == documents_of(*whole)
        assert sum(len(part.trained_rows) for part in parts) == ranks[0].trained_tokens(step)
        for part in parts:
            documents = documents_of(part)
            assert sum(map(len, documents)) <= longest >> halvings or len(documents) == 1 or not documents
            if padded:
                assert part.input_ids.shape[1] in [128 >> often for often in range(halvings + 1)]


def test_first_fit_decreasing_makes_few_parts_of_a_pack() -> None:
    [pack] = stream(of_lengths([[3, 6, 2, 5]])).micro_batches(1)
    assert pack.cu_seqlens.diff().tolist() == [3, 6, 2, 5]
    halved = stream(of_lengths([[3, 6, 2, 5]])).micro_batches(1, halvings=1)
    assert [part.cu_seqlens.diff().tolist() for part in halved] == [[6, 2], [5, 3]]
    assert [part.pieces for part in halved] == [((1, 0), (2, 0)), ((3, 0), (0, 0))]


def test_a_micro_batch_is_halved_as_often_as_it_takes_to_make_it_smaller() -> None:
    of_two_packs = stream(of_lengths([[16], [3, 2]]), batch=2)
    large, small = of_two_packs.micro_batches(1)
    assert of_two_packs.halvings_for(large, halvings=0) is None
    # Parts of 8 would hold all of its 5 tokens.
    assert of_two_packs.halvings_for(small, halvings=0) == 2
    assert of_two_packs.halvings_for(small, halvings=2) == 3
    assert [part.cu_seqlens.diff().tolist() for part in of_two_packs.micro_batches(1, halvings=2)] == [[16], [3], [2]]


def test_a_padded_document_may_become_smaller_without_its_pads() -> None:
    padded = stream(of_lengths([[3]]), pad_to=16)
    [pack] = padded.micro_batches(1)
    assert padded.halvings_for(pack, halvings=0) == 1
    [part] = padded.micro_batches(1, halvings=5)
    assert part.cu_seqlens.tolist() == [0, 3, 4]
    assert padded.halvings_for(part, halvings=5) is None


def test_a_cut_sample_is_listed_once_a_step_as_often_as_it_is_drawn() -> None:
    samples = [([1] * 9, [1] * 9), ([2] * 4, [1] * 4)]
    # The first one is drawn twice, and cut at another token each time; then the second.
    packs = [[(0, 0, 6)], [(0, 6, 3), (0, 0, 3)], [(0, 3, 6)], [(1, 0, 4)]]
    assert sorted(stream(in_pieces(samples, packs), batch=4).sample_ids(1)) == [0, 0, 1]
    ids = [stream(in_pieces(samples, packs), batch=1).sample_ids(step) for step in (1, 2, 3, 4)]
    # A step that trains the rest of a sample names it.
    assert sorted(ids) == [[0], [0], [0], [1]]
