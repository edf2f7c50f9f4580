"""A folder that several processes want at once: one makes it, the others wait for it.

Called by the two caches, of tokens and of packs, on every rank, before any process group exists.
"""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sftjob.failure import JobFailure, Reason

T = TypeVar("T")


def made_once(
    folder: Path, *, opened: Callable[[], T | None], make: Callable[[Path], None], on_wait: Callable[[], None]
) -> T:
    """`opened` gives None unless the folder is whole; `make` fills the folder that it is given, `meta.json` last.

    Raises JobFailure where the folder can't be used.
    """
    try:
        return _made_once(folder, opened, make, on_wait)
    except OSError as error:
        raise JobFailure(
            Reason.STORAGE_UNAVAILABLE,
            f"{error.filename or folder.parent}: {error.strerror}; "
            "name a cache folder that can be written and has room",
        ) from error


def _made_once(
    folder: Path, opened: Callable[[], T | None], make: Callable[[Path], None], on_wait: Callable[[], None]
) -> T:
    if (found := opened()) is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(folder.name + ".lock"), on_wait):
        if (found := opened()) is not None:
            return found
        # Whatever stands here is torn: its writer no longer holds the lock.
        temporary = folder.with_name(folder.name + ".tmp")
        for leftover in (folder, temporary):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        try:
            make(temporary)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        made = opened()
        assert made is not None
        return made


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Exclusive among processes and threads; the kernel releases it when its holder dies."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                on_wait()
                time.sleep(0.1)
        yield
