"""SIGTERM means: save and stop. A rank notes it here, and looks at it between micro-batches."""

import os
import signal
import time
from types import FrameType


class StopSignal:
    """Installs itself as the handler of SIGTERM."""

    def __init__(self) -> None:
        self._received_at: float | None = None
        self._before = signal.signal(signal.SIGTERM, self._on_signal)

    @property
    def received(self) -> bool:
        return self._received_at is not None

    @property
    def seconds_ago(self) -> float:
        """-1 where it was not received."""
        return time.monotonic() - self._received_at if self._received_at is not None else -1.0

    def give_back(self) -> None:
        """The signal means again what it meant before."""
        signal.signal(signal.SIGTERM, self._before)

    def close(self) -> None:
        """Gives it back after a run that has ended well; one that came too late for anybody to look is sent on."""
        self.give_back()
        if self.received:
            os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        if self._received_at is None:
            self._received_at = time.monotonic()
