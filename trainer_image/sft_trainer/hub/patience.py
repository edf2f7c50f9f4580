"""How long a hub that does not answer is asked again, within one attempt."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sft_trainer.hub.refusals import REFUSALS, is_passing

PATIENCE_SECONDS = 120.0
"""Without an answer, or without a byte. The next attempt goes on where this one gives up."""
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 10.0

log = logging.getLogger(__name__)

T = TypeVar("T")


class Patience:
    def __init__(self, on_detail: Callable[[str], None]) -> None:
        self._on_detail = on_detail
        self.renew()

    def renew(self) -> None:
        """The hub has answered."""
        self._since = time.monotonic()
        self._pause = _FIRST_PAUSE_SECONDS

    def wait(self, error: Exception) -> None:
        """Raises the error where asking again is of no use, or was in vain for too long."""
        if not is_passing(error) or time.monotonic() - self._since > PATIENCE_SECONDS:
            raise error
        log.warning("%s: %s; asking again in %.0f s", type(error).__name__, error, self._pause)
        self._on_detail(f"the hub does not answer ({type(error).__name__}), asking again")
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)


def asked(ask: Callable[[], T], *, on_detail: Callable[[str], None]) -> T:
    """The answer. Raises one of REFUSALS."""
    patience = Patience(on_detail)
    while True:
        try:
            return ask()
        except REFUSALS as error:
            patience.wait(error)
