"""A built cluster's end: all that its start can have made is looked for and taken away."""

import shutil
import time
from pathlib import Path

from cluster import cgroups, network
from cluster.place import read_before, release_machine

PATIENCE_SECONDS = 30


def down(folder: Path) -> None:
    """Leaves nothing of a cluster, whole or half; a second call finds nothing to do.

    Raises TimeoutError where a process can't be ended.
    """
    # With the processes go their namespaces: mounts, addresses and rules of the nodes.
    cgroups.kill()
    network.remove()
    before = read_before()
    if before is not None:
        for name, value in before.sysctls.items():
            path = Path("/proc/sys", name)
            if path.read_text() != value:
                path.write_text(value)
        for missing in map(Path, before.missing_folders):
            # One that has content by now has another user.
            if missing.is_dir() and not any(missing.iterdir()):
                missing.rmdir()
    _delete(folder)
    release_machine()


def _delete(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError:
            # The kernel drops a dead node's mounts in its own time.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
