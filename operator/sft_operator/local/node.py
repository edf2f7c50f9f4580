"""One node of one attempt: a folder, and the launcher process that works in it.

The folder alone tells what became of the launcher, to whoever asks and after any crash:
`lock` is held by the launcher for life; `pid` is written by the process itself before it becomes the launcher;
`outcome.json` are its last words; `terminated` tells when it was asked to end; `launcher.log` is all that it said.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from sft_operator.lifecycle.observation import NodeObservation, NodeState
from sft_operator.local.files import replace_file
from sft_operator.local.lock import is_locked, locked
from sftjob import names
from sftjob.inspection import ShownSamples
from sftjob.outcome import Outcome
from sftjob.progress import Progress

_R = TypeVar("_R", Outcome, Progress, ShownSamples)

# The pid is written before anything can go wrong in the launcher: no process ever runs that nobody can name.
_START = 'echo $$ > "$0" && exec "$@"'


class LocalNode:
    def __init__(self, folder: Path, *, rank: int) -> None:
        self.rank = rank
        self.folder = folder
        self.log = folder / "launcher.log"
        self.outcome_file = folder / "outcome.json"
        self.progress_file = folder / names.PROGRESS
        self._lock = folder / "lock"
        self._pid = folder / "pid"
        self._terminated = folder / "terminated"

    @property
    def is_alive(self) -> bool:
        return is_locked(self._lock)

    @property
    def is_terminated(self) -> bool:
        """It was asked to end."""
        return self._terminated.exists()

    def observe(self) -> NodeObservation:
        # The lock first: only a launcher that has ended has spoken its last words whole.
        if self.is_alive:
            return NodeObservation(self.rank, NodeState.RUNNING)
        if self._read_pid() is None:
            return NodeObservation(self.rank, NodeState.MISSING)
        return NodeObservation(self.rank, NodeState.ENDED, _read_record(self.outcome_file, Outcome))

    def progress(self) -> Progress | None:
        return _read_record(self.progress_file, Progress)

    def samples(self) -> ShownSamples | None:
        """Of a first attempt, once its data is prepared."""
        return _read_record(self.folder / names.SAMPLES, ShownSamples)

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Raises Locked where a launcher lives here. In a session of its own: a terminal's Ctrl-C isn't for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self._lock) as lock, self.log.open("ab") as log:
            return subprocess.Popen(
                ["sh", "-c", _START, str(self._pid), *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
                start_new_session=True,
            )

    def terminate(self, *, grace_seconds: float) -> None:
        """Asks it to end the first time; kills it when it outlived its grace at a later time. Never waits."""
        if self.is_terminated:
            # Monotonic time is the machine's: it goes on over a restart of ours, and no clock adjustment shortens it.
            asked_at = float(self._terminated.read_text())
            if time.monotonic() - asked_at >= grace_seconds:
                self.kill()
        elif self._signal(signal.SIGTERM):
            replace_file(self._terminated, str(time.monotonic()))

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> bool:
        """False where there is nobody to signal yet, or any more: the pid counts only while its owner has the lock."""
        pid = self._read_pid()
        if pid is None or not self.is_alive:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def _read_pid(self) -> int | None:
        try:
            text = self._pid.read_text()
        except FileNotFoundError:
            return None
        return int(text) if text.endswith("\n") else None


def _read_record(path: Path, record: type[_R]) -> _R | None:
    """None where it was never written, or where its writer died within."""
    try:
        return record.from_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
