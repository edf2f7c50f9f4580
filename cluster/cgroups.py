"""The cluster's control groups: what runs in them is found and ended through them, whoever started it.

Every process of a cluster is in a group below `sftjob`: `sftjob/parts/<part>` for its own programs,
`sftjob/node-<n>` for a node's pods. Version 1 has a tree for each controller, version 2 one for all.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
NAME = "sftjob"


def version() -> int | None:
    if (MOUNT / "cgroup.controllers").exists():
        return 2
    return 1 if (MOUNT / "memory").is_dir() and (MOUNT / "pids").is_dir() else None


def _trees() -> list[Path]:
    if version() == 2:
        return [MOUNT]
    if version() is None:
        return []
    # `cpu` and `cpuacct` are often links to one tree.
    return sorted({tree.resolve() for tree in MOUNT.iterdir() if (tree / "cgroup.procs").exists()})


def _tracked() -> Path:
    return MOUNT if version() == 2 else MOUNT / "pids"


def for_pods(node: int) -> str:
    """The kubelet's `cgroupRoot`, as it counts: two kubelets that share one kill each other's pods."""
    return f"/{NAME}/node-{node}"


def make_for_pods(node: int) -> None:
    for tree in _trees():
        group = tree / for_pods(node).lstrip("/")
        group.mkdir(parents=True, exist_ok=True)
        if version() == 2:
            for parent in (tree, tree / NAME):
                _hand_down_controllers(parent)


def _hand_down_controllers(group: Path) -> None:
    control = group / "cgroup.subtree_control"
    missing = set((group / "cgroup.controllers").read_text().split()) - set(control.read_text().split())
    if missing:
        control.write_text(" ".join(f"+{name}" for name in sorted(missing)))


def joining(part: str) -> Callable[[], object]:
    """To be called in a new process: what it becomes, and all it starts, is in the part's group."""
    procs = _tracked() / NAME / "parts" / part / "cgroup.procs"
    procs.parent.mkdir(parents=True, exist_ok=True)
    return lambda: procs.write_text("0")


def processes(part: str) -> dict[int, str]:
    """Process id and name of the program, of what was started as this part and lives."""
    return _programs(_tracked() / NAME / "parts" / part)


def all_processes() -> dict[int, str]:
    return _programs(_tracked() / NAME)


def _programs(group: Path) -> dict[int, str]:
    found = {}
    for folder in _below(group):
        try:
            pids = (folder / "cgroup.procs").read_text().split()
        except OSError:
            continue  # a pod's group can go while we read
        for pid in map(int, pids):
            try:
                found[pid] = Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
            except OSError:
                continue  # ended, a zombie, or of the kernel
    return found


def _below(group: Path) -> list[Path]:
    """The group itself and all below it, parents first. `os.walk` doesn't mind what goes meanwhile."""
    return [Path(parent) for parent, _, _ in os.walk(group)]


def exists() -> bool:
    return any((tree / NAME).exists() for tree in _trees())


def kill(*, patience_seconds: float = 60) -> None:
    """Ends all processes and takes the groups away.

    Raises TimeoutError where one can't be ended.
    """
    deadline = time.monotonic() + patience_seconds
    while exists():
        for pid in all_processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for tree in _trees():
            for group in reversed(_below(tree / NAME)):
                _remove(group)
        if time.monotonic() > deadline:
            left = ", ".join(f"{name} ({pid})" for pid, name in all_processes().items())
            raise TimeoutError(f"processes that can't be ended after {patience_seconds:.0f} s: {left or 'zombies'}")
        time.sleep(0.05)


def _remove(group: Path) -> None:
    try:
        group.rmdir()
    except OSError:
        return  # a file of the kernel, not there, or a process is still leaving: the caller looks again
