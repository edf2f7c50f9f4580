"""When a run is saved that was not told how often: by its first rank's clock. Asked by the loop after each step."""

import time

from sft_trainer.train.world import World

_SECONDS = 1800
_SHARE = 20


def is_due(*, seconds_since: float, stall_seconds: float) -> bool:
    """`seconds_since` the last save, or the start; `stall_seconds` that training stood for it, 0 where there was none.

    Each half hour; less often where saves would take more than a twentieth of the time.
    """
    return seconds_since >= max(_SECONDS, _SHARE * stall_seconds)


class SaveClock:
    """All ranks ask it at the same steps, and get the same answer."""

    def __init__(self, world: World, *, runs: bool) -> None:
        self._world, self._runs = world, runs
        self.begin_again(stall_seconds=0)

    def begin_again(self, *, stall_seconds: float) -> None:
        """After a save, which training stood still for."""
        self._began, self._stall_seconds = time.monotonic(), stall_seconds

    def stop(self) -> None:
        self._runs = False

    def is_due(self) -> bool:
        if not self._runs:
            return False
        seconds_since = time.monotonic() - self._began
        due = self._world.is_first and is_due(seconds_since=seconds_since, stall_seconds=self._stall_seconds)
        # All ranks, CPU: clocks differ, so the first one's counts.
        return self._world.max(float(due)) > 0
