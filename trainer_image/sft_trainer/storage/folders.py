"""Files and folders that appear whole or not at all, and stay after a power cut."""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sftjob.manifest import FileEntry

log = logging.getLogger(__name__)

_HASH_THREADS = 4
_BLOCK_BYTES = 8 * 1024 * 1024


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """A file's content, or a folder's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        sync_path(path)
    sync_path(folder)


def publish(temporary: Path, final: Path) -> None:
    """Everything to disk, then one rename. Raises FileExistsError rather than replace a folder that holds anything."""
    sync_tree(temporary)
    try:
        temporary.rename(final)
    except OSError as error:
        # POSIX lets a folder take the place of an empty one.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise FileExistsError(f"{final} exists") from None
    sync_path(final.parent)


def discard(folder: Path, *, renamed: Path | None = None) -> None:
    """Deletes a folder, under another name first where one is given; of a symbolic link the link alone.

    One that can't be deleted (NFS keeps a file that is open elsewhere) is lost space and no more: that is told.
    """
    try:
        doomed = folder.rename(renamed) if renamed else folder
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()
    except OSError as error:
        log.warning("%s can't be deleted, and takes up room: %s", folder, error)


def hash_tree(folder: Path, *, leave_out: str) -> list[FileEntry]:
    """Every file under the folder but the one named, by path."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != leave_out]
    return hash_files(folder, [path.relative_to(folder).as_posix() for path in paths])


def hash_files(folder: Path, names: Iterable[str]) -> list[FileEntry]:
    """Of a folder, by path."""
    paths = sorted(folder / name for name in names)
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        hashes = list(pool.map(_sha256, paths))
    return [
        FileEntry(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256)
        for path, sha256 in zip(paths, hashes, strict=True)
    ]


def first_difference(folder: Path, files: list[FileEntry]) -> str | None:
    """What is wrong with the folder's files, sizes first because they are free; None if all are as listed."""
    for entry in files:
        path = folder / entry.path
        if not path.is_file():
            return f"{entry.path} is missing"
        if path.stat().st_size != entry.bytes:
            return f"{entry.path} has {path.stat().st_size} bytes instead of {entry.bytes}"
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        hashes = pool.map(lambda entry: _sha256(folder / entry.path), files)
        for entry, sha256 in zip(files, hashes, strict=True):
            if sha256 != entry.sha256:
                return f"{entry.path} has other content than was saved"
    return None


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()
