"""Progress as a file in the launcher's scratch folder: written by whichever process has the work, read by the rest."""

import threading
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sftjob import names
from sftjob.base import utc_now
from sftjob.progress import Progress, Stage

_WRITE_SECONDS = 0.5


def progress_path(scratch: Path) -> Path:
    return scratch / names.PROGRESS


def read_progress(scratch: Path) -> Progress | None:
    """None before anything was written."""
    try:
        return Progress.from_json(progress_path(scratch).read_text())
    except (FileNotFoundError, ValidationError):
        return None


def write_progress(scratch: Path, progress: Progress) -> bool:
    """The last writer wins; but within an attempt a falling step is dropped, and the answer is False.

    Without a lock, which a stopped rank could hold: of two writers at the same instant the lower step may come last.
    """
    known = read_progress(scratch)
    if known and known.attempt == progress.attempt and progress.step < known.step:
        return False
    # A rank and the launcher may write at once.
    temporary = progress_path(scratch).with_suffix(f".{threading.get_native_id()}.tmp")
    temporary.write_text(progress.to_json())
    temporary.replace(progress_path(scratch))
    return True


def write_stage(scratch: Path, stage: Stage, detail: str | None = None) -> None:
    """For the launcher and torchrun, between their children: what these wrote stays."""
    progress = read_progress(scratch)
    write_progress(scratch, progress.model_copy(update={"stage": stage, "detail": detail, "reported_at": utc_now()}))


class ProgressReporter:
    """Keeps the latest progress in memory; a thread writes it, so that no step ever waits for a disk."""

    def __init__(self, scratch: Path) -> None:
        """Goes on from what the launcher has written there."""
        self._scratch = scratch
        self._latest = read_progress(scratch)
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_changes, name="progress", daemon=True)
        self._thread.start()

    def report(self, **changes: Any) -> None:
        """Fields of Progress; those not named keep their value."""
        self._latest = self._latest.model_copy(update={**changes, "reported_at": utc_now()})
        self._changed.set()

    def close(self) -> None:
        """Returns when the last report is in the file."""
        self._closing.set()
        self._changed.set()
        self._thread.join()

    def _write_changes(self) -> None:
        while not self._closing.is_set():
            self._changed.wait()
            self._changed.clear()
            write_progress(self._scratch, self._latest)
            self._closing.wait(_WRITE_SECONDS)
        write_progress(self._scratch, self._latest)
