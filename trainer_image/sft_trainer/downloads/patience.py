"""How long a hub or a store that does not answer is asked again, within one attempt."""

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS = 120.0
"""Without an answer, or without a byte. The next attempt goes on where this one gives up."""
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 10.0

log = logging.getLogger(__name__)

T = TypeVar("T")


class Patience:
    """`who` is asked; `refusals` are what its client raises, and `is_passing` tells of which asking again may help."""

    def __init__(
        self,
        who: str,
        on_detail: Callable[[str], None],
        *,
        refusals: tuple[type[Exception], ...],
        is_passing: Callable[[Exception], bool],
    ) -> None:
        self._who, self._on_detail = who, on_detail
        self.refusals, self._is_passing = refusals, is_passing
        self.renew()

    def renew(self) -> None:
        """There was an answer."""
        self._since = time.monotonic()
        self._pause = _FIRST_PAUSE_SECONDS

    def wait(self, error: Exception) -> None:
        """Raises the error where asking again is of no use, or was in vain for too long."""
        if not self._is_passing(error) or time.monotonic() - self._since > PATIENCE_SECONDS:
            raise error
        # Without what follows a `?` in an address: that of a file in a store may be signed.
        said = re.sub(r"\?[^\s'\"]*", "?...", str(error))
        log.warning("%s: %s; asking again in %.0f s", type(error).__name__, said, self._pause)
        self._on_detail(f"{self._who} does not answer ({type(error).__name__}), asking again")
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)


def asked(ask: Callable[[], T], *, patience: Patience) -> T:
    """The answer. Raises one of the refusals."""
    while True:
        try:
            return ask()
        except patience.refusals as error:
            patience.wait(error)
