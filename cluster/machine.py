"""What this machine has, and what it lacks for a cluster: facts are read in one place, judged by a pure function."""

import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster import versions

GIB = 2**30

CLUSTER_BYTES = 25 * GIB
"""Programs, images and the trainer's layers, all in all."""
BUILD_BYTES = 12 * GIB
"""Go's caches and the programs while they are built; counted until they are there."""
MEMORY_BYTES = 4 * GIB

PORTS = {
    6443: "the API server",
    2379: "etcd",
    2380: "etcd's peers",
    5000: "the image registry",
    10248: "the kubelet's health",
    10249: "kube-proxy's metrics",
    10250: "the kubelet",
    10256: "kube-proxy's health",
    10257: "the controller manager",
    10259: "the scheduler",
}


@dataclass(frozen=True)
class Machine:
    is_root: bool
    memory_bytes: int
    free_bytes: int
    """On the file system of the cluster's folder."""
    folder: Path
    cgroup_version: int | None
    go_version: tuple[int, int] | None
    missing: tuple[str, ...]
    """Programs of `versions.DEBIAN_PACKAGES` that are not there."""
    taken_ports: tuple[int, ...]
    is_built: bool
    """All programs lie in the cache."""


def problems(machine: Machine) -> list[str]:
    """Everything that stands in a cluster's way at once, each with what to do about it; empty where nothing does."""
    found = []
    if not machine.is_root:
        found.append("user: not root; containers, networks and cgroups need it: sudo python -m cluster ...")
    if machine.memory_bytes < MEMORY_BYTES:
        found.append(
            f"memory: {machine.memory_bytes / GIB:.1f} GiB; the cluster and a small job need {MEMORY_BYTES // GIB} GiB"
        )
    needed = CLUSTER_BYTES + (0 if machine.is_built else BUILD_BYTES)
    if machine.free_bytes < needed:
        found.append(
            f"disk: {machine.folder} has {machine.free_bytes / GIB:.1f} GiB free of the {needed / GIB:.0f} GiB needed; "
            f"free {(needed - machine.free_bytes) / GIB:.1f} GiB, or set XDG_CACHE_HOME to a larger disk"
        )
    if machine.cgroup_version is None:
        found.append("cgroups: neither version 1 nor 2 is mounted under /sys/fs/cgroup; mount one of them")
    packages = sorted({versions.DEBIAN_PACKAGES[program] for program in machine.missing})
    if packages:
        found.append(f"packages: missing {', '.join(packages)}: apt-get install --yes {' '.join(packages)}")
    if not machine.is_built and (machine.go_version is None or machine.go_version < versions.GO):
        have = "not found" if machine.go_version is None else "{}.{} is too old".format(*machine.go_version)
        found.append("go: {}; the programs are built with {}.{} or later: install it".format(have, *versions.GO))
    for port in machine.taken_ports:
        found.append(f"port {port}: taken, and {PORTS[port]} needs it; see who listens: ss -ltnp sport = :{port}")
    return found


def read_machine(folder: Path, *, is_built: bool) -> Machine:
    return Machine(
        is_root=os.geteuid() == 0,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_bytes=shutil.disk_usage(_existing(folder)).free,
        folder=folder,
        cgroup_version=_cgroup_version(Path("/sys/fs/cgroup")),
        go_version=_go_version(),
        missing=tuple(program for program in versions.DEBIAN_PACKAGES if shutil.which(program) is None),
        taken_ports=tuple(port for port in PORTS if _is_taken(port)),
        is_built=is_built,
    )


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _cgroup_version(root: Path) -> int | None:
    if (root / "cgroup.controllers").exists():
        return 2
    return 1 if (root / "memory").is_dir() and (root / "cpu").is_dir() else None


def _go_version() -> tuple[int, int] | None:
    if shutil.which("go") is None:
        return None
    told = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    match = re.match(r"go(\d+)\.(\d+)", told)
    return (int(match[1]), int(match[2])) if match else None


def _is_taken(port: int) -> bool:
    with socket.socket() as listener:
        # As the programs themselves do: a connection that is only dying doesn't count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("0.0.0.0", port))
        except OSError:
            return True
    return False
