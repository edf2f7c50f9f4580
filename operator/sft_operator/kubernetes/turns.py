"""Of many jobs that wait, those to look at now: as many as leave the processor to others.

Pure but for what it remembers.
"""

import heapq
from collections.abc import Collection

from sft_operator.lifecycle.backend import JobKey

Waiting = tuple[JobKey, str | None]
"""A job and its phase: one that has come to another phase waits for something else."""


class Turns:
    def __init__(self, *, at_once: int, first_after: int) -> None:
        """`first_after`: the round after that in which a newcomer is seen first that surely looks at it."""
        self._at_once = at_once
        self._first_after = first_after
        self._round = 0
        self._came: dict[Waiting, int] = {}
        self._last: dict[Waiting, int] = {}
        """The round of each one's turn. That of a newcomer, which had a pass of its own just now, was a round ago."""

    def next(self, waiting: Collection[Waiting]) -> set[Waiting]:
        """Those whose turn is the longest ago, and the newcomers of then. Who waits no more is forgotten."""
        self._round += 1
        self._came = {one: self._came.get(one, self._round) for one in waiting}
        last = {one: self._last.get(one, self._round - 1) for one in waiting}
        due = {one for one, came in self._came.items() if self._round - came == self._first_after}
        due.update(heapq.nsmallest(self._at_once, last, key=last.__getitem__))
        self._last = last | dict.fromkeys(due, self._round)
        return due
