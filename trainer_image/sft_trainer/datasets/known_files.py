"""Digests of files that were read before, so that a start does not read gigabytes to learn that nothing changed.

Called by `open_tokens` on every rank. A file is the same while its path, inode, size and both its times are: whoever
writes to a file changes its ctime, which no program can set back.

    known-<hash of all these>  the sha256 of the file's content
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from sftjob.base import digest

_QUIET_SECONDS = 2.0
"""A file that was written this shortly ago can be written again without a change of its times, which have ticks."""


class KnownFile:
    """Made before the file is read, so that a change while it is read is found."""

    def __init__(self, path: Path, *, folder: Path) -> None:
        self._path = path
        self._folder = folder
        self._found = _state(path)
        self._seen_at = time.time()

    def sha256(self) -> str | None:
        """None where the file is not known as it is now."""
        try:
            return self._record().read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remember(self, sha256: str) -> None:
        found = _state(self._path)
        if found != self._found or self._seen_at - max(found["mtime"], found["ctime"]) / 1e9 < _QUIET_SECONDS:
            return
        temporary = self._record().with_suffix(f".{os.getpid()}.tmp")
        # It only saves time: a cache that can't be written to is as good as ever.
        with suppress(OSError):
            temporary.write_text(sha256)
            temporary.replace(self._record())

    def _record(self) -> Path:
        name = digest({"path": str(self._path.absolute()), **self._found})
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
