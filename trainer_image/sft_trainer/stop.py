"""SIGTERM means: save and stop. A rank notes it here, and looks at it between micro-batches."""

import logging
import os
import signal
import threading
import time
from types import FrameType

log = logging.getLogger(__name__)


class StopSignal:
    """Installs itself as the handler of SIGTERM, and of Ctrl-C too where nobody else listens for that."""

    def __init__(self, *, of_keyboard: bool = False) -> None:
        self._received_at: float | None = None
        self._number = signal.SIGTERM
        numbers = [signal.SIGTERM, *([signal.SIGINT] if of_keyboard else [])]
        if threading.current_thread() is not threading.main_thread():
            log.warning("training runs beside the main thread, which alone hears signals: a stop will not save")
            numbers = []
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}

    @property
    def received(self) -> bool:
        return self._received_at is not None

    @property
    def seconds_ago(self) -> float:
        """-1 where it was not received."""
        return time.monotonic() - self._received_at if self._received_at is not None else -1.0

    def give_back(self) -> None:
        """The signals mean again what they meant before."""
        for number, before in self._before.items():
            signal.signal(number, before)

    def close(self) -> None:
        """Gives them back after a run that has ended well; one that came too late for anybody to look is sent on."""
        self.give_back()
        if self.received:
            os.kill(os.getpid(), self._number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._received_at is None:
            self._received_at, self._number = time.monotonic(), signal.Signals(number)
        if number == signal.SIGINT:
            # The second Ctrl-C ends the process as it would have.
            signal.signal(number, self._before[signal.SIGINT])
