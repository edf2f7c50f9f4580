"""What was found in files that were read before, so that a start does not read gigabytes to learn that nothing changed.

Called by `open_tokens` on every rank. A file is the same while its path, inode, size and both its times are: whoever
writes to a file changes its ctime, which no program can set back.

    known-<hash of all these, of all files>  the digest of their content, and the format of their rows
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from sftjob.base import Record, digest

_QUIET_SECONDS = 2.0
"""A file that was written this shortly ago can be written again without a change of its times, which have ticks."""


class Known(Record):
    sha256: str
    row_format: str | None = None
    """As found; None where nobody looked, because the configuration names it."""


class KnownFiles:
    """Made before the files are read, so that a change while they are read is found."""

    def __init__(self, files: list[Path], *, folder: Path) -> None:
        self._files = files
        self._folder = folder
        self._found = [_state(path) for path in files]
        self._seen_at = time.time()

    def recall(self) -> Known | None:
        """None where the files are not known as they are now."""
        try:
            return Known.from_json(self._record().read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None

    def remember(self, known: Known) -> None:
        found = [_state(path) for path in self._files]
        if found != self._found or any(self._is_fresh(state) for state in found):
            return
        temporary = self._record().with_suffix(f".{os.getpid()}.tmp")
        # It only saves time: a cache that can't be written to is as good as ever.
        with suppress(OSError):
            temporary.write_text(known.to_json())
            temporary.replace(self._record())

    def _is_fresh(self, state: dict[str, int]) -> bool:
        return self._seen_at - max(state["mtime"], state["ctime"]) / 1e9 < _QUIET_SECONDS

    def _record(self) -> Path:
        places = [str(path.absolute()) for path in self._files]
        name = digest([{"path": place, **state} for place, state in zip(places, self._found, strict=True)])
        return self._folder / f"known-{name.removeprefix('sha256:')[:32]}"


def _state(path: Path) -> dict[str, int]:
    """Empty for what can't be opened: whoever reads it says what is wrong."""
    try:
        with path.open("rb") as file:  # NFS asks its server when a file is opened, not before
            found = os.fstat(file.fileno())
    except OSError:
        return {}
    return {
        "inode": found.st_ino,
        "size": found.st_size,
        "mtime": found.st_mtime_ns,
        "ctime": found.st_ctime_ns,
    }
