"""The packs of each optimiser step, as tensors.

In: `PreparedData`. Out: a rank's `PackedBatch`es of a step, and what all ranks must know about it: its trained tokens,
its samples. Called by the Trainer's loop. Everything is a function of the step, so a resumed run goes on exactly where
the saved one stopped, whatever the number of ranks.

Packs form an endless stream: position p is in epoch p // packs, at its place in that epoch's permutation. Step s,
counted from 1, takes the G (global batch size) positions from (s - 1) * G on. How many ranks there are decides only who
of them gets which of these packs: see `_dealt`.

A pack goes through the model in one piece, unless memory has shown to be too small for that: then in parts, each made
of whole documents (`parts`).

T tokens of a pack, or of a part.
"""

import math
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

from sft_trainer.datasets.order import permutation
from sft_trainer.datasets.parts import Piece, in_parts
from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.packed import PackedBatch

IGNORED = -100
_PAD_ID = 0
"""Any token would do: pads are documents of their own, and nothing is learnt from them."""
_DUMMY_TOKENS = 8
_FEWEST_PADDED = 128
"""A smaller pack would hardly be faster."""


class BatchStream:
    def __init__(
        self,
        data: PreparedData,
        *,
        seed: int,
        global_batch_size: int,
        world_size: int,
        rank: int,
        pad_to: int | None = None,
        pads_by_halves: bool = False,
        total_epoch: int | None = None,
    ) -> None:
        """`pad_to` tokens in every pack, for a compiled model; with `pads_by_halves` the least of that, its half, its
        quarter... down to 128 or a little more, that holds the pack. After `total_epoch` the stream ends: what the last
        step lacks are packs of pads. None: it never ends."""
        assert global_batch_size % world_size == 0
        self._data = data
        self._packs = len(data.packs)
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._world_size = world_size
        self._rank = rank
        self._pad_to = pad_to
        self._halves = (pad_to // _FEWEST_PADDED).bit_length() - 1 if pad_to and pads_by_halves else 0
        self._cost = data.stored.attention
        if pad_to is not None:
            sizes = np.array(self._sizes(0)[::-1])
            self._cost = self._cost + (sizes[np.searchsorted(sizes, data.stored.tokens)] - data.stored.tokens) ** 2
        self._longest = pad_to or int(data.stored.tokens.max())
        self._end = math.inf if total_epoch is None else total_epoch * self._packs
        self._order = lru_cache(maxsize=2)(self._order_of_epoch)

    def total_steps(self, total_epoch: int) -> int:
        return math.ceil(total_epoch * self._packs / self._global_batch_size)

    def micro_batches(self, step: int, *, halvings: int = 0) -> list[PackedBatch]:
        """This rank's packs, or parts of them: as many on every rank, so that none waits in a collective for another.

        Parts are of at most `most_tokens(halvings)` tokens, but for a document that is longer: it goes alone.
        """
        dealt = self._dealt(step)
        if not halvings:
            return [self._batch(position, self._pieces(position)) for position in dealt[self._rank]]
        limit = self.most_tokens(halvings)
        parts = [
            [(position, part) for position in positions for part in in_parts(self._pieces(position), limit=limit)]
            for positions in dealt
        ]
        mine, most = parts[self._rank], max(map(len, parts))
        mine += [(None, [])] * (most - len(mine))
        return [self._batch(position, part, halvings=halvings) for position, part in mine]

    def most_tokens(self, halvings: int) -> int:
        """That go through the model at a time, once packs have been halved so often; 0 where no token would be left."""
        return self._longest >> halvings

    def halvings_for(self, batch: PackedBatch, *, halvings: int) -> int | None:
        """How often to halve, instead of `halvings` times, such that all of `batch` goes in smaller parts.

        None: it is one document, which can't be divided.
        """
        tokens = batch.input_ids.shape[1]
        longest = max(batch.cu_seqlens.diff()[: len(batch.pieces)].tolist(), default=0)
        while self.most_tokens(halvings := halvings + 1):
            if self.most_tokens(halvings) < tokens and self._padded(longest, halvings) < tokens:
                return halvings
        return None

    def trained_tokens(self, step: int) -> int:
        """Labels that count, over all ranks: what the step's loss is divided by."""
        return int(self._data.stored.trained[self._packs_of(step)].sum())

    def tokens(self, step: int) -> int:
        """Over all ranks, pads not counted."""
        return int(self._data.stored.tokens[self._packs_of(step)].sum())

    def document_lengths(self, step: int) -> list[int]:
        """Tokens of each, over all ranks, pads not counted."""
        return [length for pack in self._packs_of(step) for _, _, length in self._data.packs.pieces(pack)]

    def sample_ids(self, step: int) -> list[int]:
        """Over all ranks, in the order of the stream: each as often as it was drawn, though packs may have cut it."""
        pieces, listed = Counter[tuple[int, int]](), Counter[int]()
        ids = []
        for pack in self._packs_of(step):
            for sample, begin, _ in self._data.packs.pieces(pack):
                pieces[sample, begin] += 1
                if pieces[sample, begin] > listed[sample]:
                    listed[sample] += 1
                    ids.append(sample)
        return ids

    def epoch(self, step: int) -> float:
        """Passes over the data that are done after this step."""
        return min(step * self._global_batch_size, self._end) / self._packs

    def _dealt(self, step: int) -> list[list[int | None]]:
        """For each rank the positions of its packs, None for one of pads, so that all spend about as long in attention.

        Ranks wait for each other in every micro-batch, so each has W packs of nearly one cost: the W dearest, the next
        W, and so on. Of these the rank with the least so far gets the dearest (Graham's LPT rule, 1969): in the end no
        two ranks are further apart than the packs of one micro-batch.
        """
        packs: list[int | None] = sorted(self._positions(step), key=lambda at: -self._cost[self._pack_at(at)])
        packs += [None] * (self._global_batch_size - len(packs))
        dealt: list[list[int | None]] = [[] for _ in range(self._world_size)]
        spent = [0] * self._world_size
        for first in range(0, len(packs), self._world_size):
            ranks = sorted(range(self._world_size), key=spent.__getitem__)
            for rank, position in zip(ranks, packs[first : first + self._world_size], strict=True):
                dealt[rank].append(position)
                spent[rank] += 0 if position is None else int(self._cost[self._pack_at(position)])
        return dealt

    def _packs_of(self, step: int) -> list[int]:
        return [self._pack_at(position) for position in self._positions(step)]

    def _positions(self, step: int) -> range:
        first = (step - 1) * self._global_batch_size
        return range(first, int(min(first + self._global_batch_size, self._end)))

    def _pack_at(self, position: int) -> int:
        epoch, place = divmod(position, self._packs)
        return int(self._order(epoch)[place])

    def _order_of_epoch(self, epoch: int) -> np.ndarray:
        return permutation(self._packs, seed=(self._seed, 2, epoch))

    def _pieces(self, position: int | None) -> list[Piece]:
        return [] if position is None else self._data.packs.pieces(self._pack_at(position))

    def _padded(self, tokens: int, halvings: int) -> int:
        if self._pad_to is None:
            return tokens
        return min(size for size in self._sizes(halvings) if size >= min(tokens, self._pad_to))

    def _sizes(self, halvings: int) -> list[int]:
        """All lengths that a compiled model sees."""
        assert self._pad_to is not None
        return [self._pad_to >> often for often in range(max(halvings, self._halves) + 1)]

    def _batch(self, position: int | None, pieces: list[Piece], *, halvings: int = 0) -> PackedBatch:
        documents = list(self._documents(pieces))
        positions = [np.arange(len(ids)) for ids, _ in documents]
        length = sum(map(len, positions))
        wanted = self._padded(length or _DUMMY_TOKENS, halvings)
        assert length <= wanted, "a pack is longer than pad_to"
        if length < wanted:
            pads = np.full(wanted - length, _PAD_ID, dtype=np.int64)
            documents.append((pads, np.full(len(pads), IGNORED, dtype=np.int64)))
            # No later ones: rotary positions may depend on the highest one of a pack (`model.rotary`).
            positions.append(np.zeros_like(pads))
        lengths = list(map(len, positions))
        labels = _row([labels for _, labels in documents])
        return PackedBatch(
            input_ids=_row([ids for ids, _ in documents]),
            position_ids=_row(positions),
            labels=labels,
            cu_seqlens=torch.tensor(np.concatenate(([0], np.cumsum(lengths))), dtype=torch.int32),
            trained_rows=(labels[0] != IGNORED).nonzero()[:, 0],
            epoch=None if position is None else 1 + position // self._packs,
            pieces=tuple((sample, begin) for sample, begin, _ in pieces),
        )

    def _documents(self, pieces: list[Piece]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids [T] and labels [T] of each piece: the label at a token is the token that follows it in the sample.

        So nothing is lost where a pack's end cuts a sample: the next pack's first token is learnt here, where all that
        it is predicted from stands.
        """
        for sample, begin, length in pieces:
            tokens, trained = self._data.sample(sample)
            ids = tokens[begin : begin + length].astype(np.int64)
            following = slice(begin + 1, begin + length + 1)
            labels = np.full(length, IGNORED, dtype=np.int64)
            learnt = np.where(trained[following], tokens[following].astype(np.int64), IGNORED)
            labels[: len(learnt)] = learnt
            yield ids, labels


def _row(pieces: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(pieces)).unsqueeze(0)
