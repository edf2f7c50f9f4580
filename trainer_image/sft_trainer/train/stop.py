"""One rank may hear SIGTERM alone, so all agree on the step at which they stop, and on whether a save still fits."""

from sft_trainer.stop import StopSignal
from sft_trainer.train.world import World

_EXIT_SECONDS = 8
"""Of the grace period: torchrun's and the launcher's margins, and an interpreter that ends."""


class Preempted(Exception):
    """All ranks have agreed to stop; `saved` says whether everything trained is in a checkpoint."""

    def __init__(self, *, saved: bool) -> None:
        kept = "everything is saved" if saved else "steps since the last save are lost"
        super().__init__(f"stopped by SIGTERM; {kept}")
        self.saved = saved


def agreed_seconds_ago(stop: StopSignal, world: World) -> float | None:
    """How long ago the first rank heard the signal; None where no rank has. Every rank gets the same answer."""
    longest = world.max(stop.seconds_ago)
    return longest if longest >= 0 else None


def seconds_left(*, seconds_ago: float, grace_seconds: float) -> float:
    """For a save that is on its way already: what it does not end within is left to the next attempt."""
    return max(0.0, grace_seconds - seconds_ago - _EXIT_SECONDS)


def save_fits(*, seconds_ago: float, save_seconds: float, grace_seconds: float) -> bool:
    """Whether a save that takes as long as the last one (0 where there was none) ends before the kill."""
    return seconds_ago + 1.5 * save_seconds + _EXIT_SECONDS <= grace_seconds
