"""Where a cluster lies: one folder of the cache, and one link by which every tool of this machine finds it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

LINK = Path("/run/sftjob-cluster")
"""To the folder of the one cluster of this machine, whatever its user's cache folder is."""


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftjob" / "cluster"


def cluster_folder(cache: Path) -> Path:
    return LINK.resolve() if LINK.is_symlink() else cache / "run"


def kubeconfig_path(folder: Path) -> Path:
    return folder / "kubeconfig"


@dataclass
class Record:
    """What was chosen at the start and what must be put back at the end; written before anything is changed."""

    name: str
    backend: str
    nodes: int
    ready: bool = False
    sysctls: dict[str, str] = field(default_factory=dict)
    """Files of /proc/sys and what they held."""
    made_folders: list[str] = field(default_factory=list)
    """Mount points that this machine lacked."""

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / "cluster.json.unfinished"
        unfinished.write_text(json.dumps(asdict(self), indent=1))
        unfinished.rename(folder / "cluster.json")


def read_record(folder: Path) -> Record | None:
    try:
        return Record(**json.loads((folder / "cluster.json").read_text()))
    except FileNotFoundError:
        return None


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
