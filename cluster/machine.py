"""What this machine has, and what it lacks for a cluster: facts are read in one place, judged by a pure function."""

import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cluster import cgroups, kind, network, versions

GIB = 2**30

CLUSTER_BYTES = 4 * GIB
"""Programs, their images and what a small cluster writes."""
BUILD_BYTES = 10 * GIB
"""Go's caches while the programs are built."""
IMAGE_BYTES = 16 * GIB
"""The images: in the builder, in the registry, unpacked on one node."""
MEMORY_BYTES = 4 * GIB


class Backend(StrEnum):
    BUILT = "built"
    KIND = "kind"


@dataclass(frozen=True)
class Machine:
    system: str
    docker_answers: bool
    is_root: bool
    memory_bytes: int
    """What is available of it."""
    free_bytes: int
    """On the file system of the cluster's folder."""
    folder: Path
    cgroup_version: int | None
    go_version: tuple[int, int] | None
    missing: tuple[str, ...]
    """Programs of `versions` that are not there."""
    taken_ports: tuple[int, ...]
    taken_ranges: tuple[str, ...]
    is_built: bool
    """All programs lie in the cache."""


def is_hopeless(*, docker_answers: bool, system: str, is_root: bool) -> bool:
    """Neither way can work here, whatever is installed or freed."""
    return not docker_answers and not (system == "linux" and is_root)


def problems(machine: Machine, backend: Backend) -> list[str]:
    """Everything that stands in a cluster's way at once, each with what to do about it; empty where nothing does."""
    found = []
    if backend is Backend.KIND:
        found += _problems_of_kind(machine)
    else:
        found += _problems_of_built(machine)
    if not re.fullmatch(r"[\w./-]+", str(machine.folder)):
        found.append(
            f"folder: {machine.folder} has characters that commands take apart; "
            "set XDG_CACHE_HOME to a path of letters, digits and ._-/"
        )
    if machine.memory_bytes < MEMORY_BYTES:
        found.append(
            f"memory: {machine.memory_bytes / GIB:.1f} GiB available of the {MEMORY_BYTES // GIB} GiB that the "
            "cluster and a small job need; end what takes it"
        )
    if machine.free_bytes < needed_bytes(machine):
        found.append(disk_problem(machine, needed_bytes(machine)))
    if not machine.is_built and (machine.go_version is None or machine.go_version < versions.GO):
        have = "not found" if machine.go_version is None else "{}.{} is too old".format(*machine.go_version)
        found.append("go: {}; the programs are built with {}.{} or later: install it".format(have, *versions.GO))
    return found


def needed_bytes(machine: Machine) -> int:
    return CLUSTER_BYTES + (0 if machine.is_built else BUILD_BYTES)


def image_problems(machine: Machine, backend: Backend, *, has_built_before: bool) -> list[str]:
    """The same for the images."""
    found = []
    if backend is Backend.BUILT:
        found += _missing_packages(machine, versions.IMAGE_PACKAGES)
    if backend is Backend.BUILT and not machine.is_root:
        found.append("user: not root; an image is built without Docker by root only: sudo python -m cluster images")
    if not has_built_before and machine.free_bytes < IMAGE_BYTES:
        found.append(disk_problem(machine, IMAGE_BYTES))
    return found


def disk_problem(machine: Machine, needed: int) -> str:
    return (
        f"disk: {machine.folder} has {machine.free_bytes / GIB:.1f} GiB free of the {needed / GIB:.0f} GiB needed; "
        f"free {(needed - machine.free_bytes) / GIB:.1f} GiB, or set XDG_CACHE_HOME to a larger disk"
    )


def _problems_of_kind(machine: Machine) -> list[str]:
    found = []
    if not machine.docker_answers:
        found.append("docker: no engine answers; start it, or leave --backend away to build without Docker")
    if "kind" in machine.missing:
        found.append(
            f"kind: not found, and a Docker engine answers: go install sigs.k8s.io/kind@{versions.KIND}, "
            "or build without Docker: sudo python -m cluster up --backend built"
        )
    if kind.REGISTRY_PORT in machine.taken_ports:
        found.append(
            f"port {kind.REGISTRY_PORT}: taken, and the image registry needs it; "
            f"see who listens: ss -ltnp sport = :{kind.REGISTRY_PORT}"
        )
    return found


def _problems_of_built(machine: Machine) -> list[str]:
    found = []
    if machine.system != "linux":
        found.append(f"system: {machine.system}; a cluster without Docker needs Linux: install Docker and kind")
        return found
    if not machine.is_root:
        found.append("user: not root; namespaces, networks and cgroups need it: sudo python -m cluster ...")
    if machine.cgroup_version is None:
        found.append("cgroups: neither version 1 nor 2 is mounted under /sys/fs/cgroup; mount one of them")
    found += _missing_packages(machine, versions.DEBIAN_PACKAGES)
    for taken in machine.taken_ranges:
        found.append(
            f"addresses: the route {taken} lies in the cluster's {network.CLUSTER} or {network.SERVICES}; remove it"
        )
    return found


def _missing_packages(machine: Machine, needed: dict[str, str]) -> list[str]:
    packages = sorted({package for program, package in needed.items() if program in machine.missing})
    if not packages:
        return []
    return [f"packages: missing {', '.join(packages)}: apt-get install --yes {' '.join(packages)}"]


def read_machine(folder: Path, *, docker_answers: bool, is_built: bool) -> Machine:
    programs = ("kind", *versions.DEBIAN_PACKAGES, *versions.IMAGE_PACKAGES)
    return Machine(
        system=sys.platform,
        docker_answers=docker_answers,
        is_root=os.geteuid() == 0,
        memory_bytes=_available_memory(),
        free_bytes=shutil.disk_usage(existing(folder)).free,
        folder=folder,
        cgroup_version=cgroups.version(),
        go_version=_go_version(),
        missing=tuple(program for program in programs if shutil.which(program) is None),
        taken_ports=(kind.REGISTRY_PORT,) if _is_taken(kind.REGISTRY_PORT) else (),
        taken_ranges=tuple(network.taken_ranges()) if shutil.which("ip") else (),
        is_built=is_built,
    )


def existing(folder: Path) -> Path:
    return folder if folder.exists() else existing(folder.parent)


def _available_memory() -> int:
    told = Path("/proc/meminfo")
    if told.exists():
        return int(re.findall(r"MemAvailable: *(\d+) kB", told.read_text())[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
            listener.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
