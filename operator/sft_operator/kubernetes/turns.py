"""Of many jobs that wait, those that a heartbeat looks at: as many as leave the processor to others.

Pure but for what it remembers.
"""

import heapq
from collections.abc import Collection

from sft_operator.lifecycle.backend import JobKey


class Turns:
    def __init__(self, *, at_once: int) -> None:
        self._at_once = at_once
        self._beat = 0
        self._last: dict[JobKey, int] = {}
        """The beat of each one's turn. That of a newcomer, which had a pass of its own just now, was a beat ago."""

    def next(self, waiting: Collection[JobKey]) -> list[JobKey]:
        """Those whose turn is the longest ago. Who waits no more is forgotten."""
        self._beat += 1
        last = {key: self._last.get(key, self._beat - 1) for key in waiting}
        chosen = heapq.nsmallest(self._at_once, last, key=last.__getitem__)
        self._last = last | dict.fromkeys(chosen, self._beat)
        return chosen
