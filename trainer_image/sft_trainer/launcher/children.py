"""One child process at a time, and the signals that reach the launcher meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from sft_trainer.stop import StopSignal

_KILL_MARGIN_SECONDS = 3
"""Left of the grace period for writing the outcome."""


class Children:
    """Runs children; on SIGTERM passes it on, and kills what does not end within the grace period."""

    def __init__(self, *, grace_seconds: int, scratch: Path, stop: StopSignal) -> None:
        """Takes the place of `stop`, which has listened since the process began."""
        self._child: subprocess.Popen[bytes] | None = None
        self._grace_seconds = grace_seconds
        self._stopped_at: float | None = None
        self._temporary = scratch / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, self._on_stop)
        if stop.received:
            self._stopped_at = time.monotonic() - stop.seconds_ago

    @property
    def stopping(self) -> bool:
        return self._stopped_at is not None

    @property
    def shutdown_seconds(self) -> int:
        """How long torchrun waits for its ranks after SIGTERM: less than this class waits for torchrun."""
        return self._grace_seconds - 2 * _KILL_MARGIN_SECONDS

    @property
    def stopped_seconds(self) -> float:
        """Since SIGTERM; only where it came."""
        assert self._stopped_at is not None
        return time.monotonic() - self._stopped_at

    @property
    def pid(self) -> int:
        """Of the child that runs."""
        assert self._child is not None
        return self._child.pid

    def kill(self) -> None:
        """Ends the child that runs, at once; what it started dies with it."""
        assert self._child is not None
        self._child.kill()

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        meanwhile: Callable[[], None] | None = None,
    ) -> int:
        """Runs `python -m module arguments` to its end; returns its exit code, negative for a signal.

        The child's temporary files go into the scratch folder, which is the launcher's to delete. `meanwhile` is called
        twice a second while the child runs.
        """
        environment = {**os.environ, **environment, "TMPDIR": str(self._temporary)}
        self._child = subprocess.Popen([sys.executable, "-u", "-m", module, *arguments], env=environment)
        if self.stopping:  # the signal may have come before there was a child to pass it to
            self._child.terminate()
        while True:
            try:
                return self._child.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                if meanwhile is not None:
                    meanwhile()
                if (
                    self._stopped_at
                    and time.monotonic() > self._stopped_at + self._grace_seconds - _KILL_MARGIN_SECONDS
                ):
                    self._child.kill()

    def _on_stop(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
        if self._child and self._child.returncode is None:
            self._child.terminate()
