"""A folder that several processes want at once: one makes it, the others wait for it.

Called by the two caches, of tokens and of packs, on every rank, before any process group exists. The folder's
`meta.json` is written last and has every file's size: what it describes is whole. Downloads have such a file too.
"""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from sft_trainer.storage.folders import sync_path
from sftjob.base import Record
from sftjob.failure import JobFailure, storage_reason

META = "meta.json"


class FolderMeta(Record):
    bytes: dict[str, int]
    """Of each file."""


T = TypeVar("T")
M = TypeVar("M", bound=FolderMeta)


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
            storage_reason(error),
            f"{error.filename or folder.parent}: {error.strerror}; "
            "name a cache folder that can be written and has room",
        ) from error


def read_meta(folder: Path, kind: type[M]) -> M | None:
    """None where the folder is missing, of another format, or has a file that is not as long as it was written."""
    try:
        meta = kind.from_json((folder / META).read_bytes())
        found = sizes(folder, meta.bytes)
    except (FileNotFoundError, ValidationError):
        return None
    return meta if found == meta.bytes else None


def write_meta(folder: Path, meta: FolderMeta) -> None:
    (folder / META).write_text(meta.to_json(indent=1))
    sync_path(folder / META)


def sizes(folder: Path, files: Iterable[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in files}


def _made_once(
    folder: Path, opened: Callable[[], T | None], make: Callable[[Path], None], on_wait: Callable[[], None]
) -> T:
    if (found := opened()) is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(folder.name + ".lock"), on_wait):
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
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
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
