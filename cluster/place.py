"""Where a cluster lies: a folder of the cache, and one folder of this machine by which every tool finds it."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.machine import Backend

RUN = Path("/run/sftjob-cluster")
"""Gone after a restart of the machine, and with it all that `down` would have to put back."""
LINK = RUN / "folder"
"""To the folder of the one cluster of this machine, whoever's cache it lies in."""


def cache_folder() -> Path:
    """Of the cluster that is there; else the user's."""
    if LINK.is_symlink():
        return LINK.readlink().parent
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base.absolute() / "sftjob" / "cluster"


def cluster_folder(cache: Path) -> Path:
    return cache / "run"


def kubeconfig_path(folder: Path) -> Path:
    return folder / "kubeconfig"


@dataclass
class Record:
    name: str
    backend: Backend
    nodes: int
    programs: list[str]
    """File names with versions: a cluster is mended with what it was started with, or not at all."""
    ready: bool = False

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "cluster.json", asdict(self))


def read_record(folder: Path) -> Record | None:
    """None where there is no whole one of this version."""
    try:
        stored = json.loads((folder / "cluster.json").read_text())
        return Record(**stored | {"backend": Backend(stored["backend"])})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@dataclass
class Before:
    """What this machine was like before its first change."""

    sysctls: dict[str, str] = field(default_factory=dict)
    """Files of /proc/sys and what they held."""
    missing_folders: list[str] = field(default_factory=list)
    """Mount points that were not there."""


def read_before() -> Before | None:
    try:
        return Before(**json.loads((RUN / "before.json").read_text()))
    except FileNotFoundError:
        return None


def claim_machine(folder: Path, before: Before) -> None:
    """From here on this machine is known to have a cluster; an earlier `before` stays."""
    RUN.mkdir(exist_ok=True)
    if read_before() is None:
        _write(RUN / "before.json", asdict(before))
    if not LINK.is_symlink():
        LINK.symlink_to(folder)


def release_machine() -> None:
    if RUN.exists():
        shutil.rmtree(RUN)


def _write(path: Path, content: object) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)


@contextmanager
def alone() -> Iterator[None]:
    """Only one command of this machine changes its cluster at a time.

    Raises Busy where another one does.
    """
    # A folder that is there on every machine: a lock needs no file of its own that would be left.
    lock = os.open("/var/run", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy("another `python -m cluster` is at work on this machine; wait for it or end it") from None
    else:
        yield
    finally:
        os.close(lock)


class Busy(Exception):
    pass


def size_bytes(folder: Path) -> int:
    """On disk, hard links once, without what goes while we count or lies on another file system."""
    seen: set[int] = set()
    total = 0
    if not folder.exists():
        return 0
    device = folder.stat().st_dev
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if _device(Path(parent, name)) == device]
        for name in files:
            try:
                stat = Path(parent, name).lstat()
            except FileNotFoundError:
                continue
            if stat.st_ino not in seen:
                seen.add(stat.st_ino)
                total += stat.st_blocks * 512
    return total


def _device(path: Path) -> int | None:
    try:
        return path.lstat().st_dev
    except FileNotFoundError:
        return None
