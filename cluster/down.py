"""A built cluster's end: all that its start can have made is looked for and taken away."""

import shutil
import time
from pathlib import Path

from cluster import cgroups, network
from cluster.place import LINK, read_record


def down(folder: Path) -> None:
    """Leaves nothing of a cluster, whole or half; a second call finds nothing to do.

    Raises TimeoutError where a process can't be ended.
    """
    # With the processes go their namespaces: mounts, addresses and rules of the nodes.
    cgroups.kill()
    network.remove()
    record = read_record(folder)
    if record is not None:
        for name, value in record.sysctls.items():
            path = Path("/proc/sys", name)
            if path.read_text() != value:
                path.write_text(value)
        for made in record.made_folders:
            if Path(made).exists():
                Path(made).rmdir()
    if folder.exists():
        _delete(folder)
    LINK.unlink(missing_ok=True)


def _delete(folder: Path) -> None:
    """The record last: should this end half-way, the next call still knows what to put back."""
    deadline = time.monotonic() + 30
    for path in folder.iterdir():
        while path.name != "cluster.json" and path.exists():
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError:
                # The kernel drops a dead node's mounts in its own time.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
    shutil.rmtree(folder)
