"""How long a step takes, for the time that is left. Called by `telling`."""

import statistics
from collections import deque

_STEPS = 21


class Pace:
    """The median of an attempt's last steps, which a slow one among them does not change."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_STEPS)
        self._count = 0

    def add(self, seconds: float) -> float:
        """Seconds of a step, with this one."""
        if self._count == 1:
            # The first one compiled, and filled caches: it counts for as long as there is no other.
            self._last.clear()
        self._count += 1
        self._last.append(seconds)
        return statistics.median(self._last)
