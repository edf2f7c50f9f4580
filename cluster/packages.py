"""Debian's packages that a cluster without Docker needs, installed where this is root's Debian."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import versions
from cluster.machine import Machine

NO_SERVICES = "#!/bin/sh\n# sftjob: packages are installed without starting their services\nexit 101\n"
POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian asks it before a package starts what it brings."""


def missing_packages(machine: Machine) -> list[str]:
    needed = versions.DEBIAN_PACKAGES | versions.IMAGE_PACKAGES
    return sorted({package for program, package in needed.items() if program in machine.missing})


def install_command(packages: list[str]) -> list[str]:
    return ["apt-get", "install", "--yes", "--no-install-recommends", *packages]


def can_install(machine: Machine) -> bool:
    return machine.is_root and shutil.which("apt-get") is not None


def install(packages: list[str]) -> None:
    """Raises CalledProcessError with apt's words."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with without_services(POLICY):
        for command in (["apt-get", "update"], install_command(packages)):
            subprocess.run(command, env=environment, capture_output=True, check=True)


@contextmanager
def without_services(policy: Path) -> Iterator[None]:
    """etcd's would take the ports of another one. Another's policy is left alone; what a killed run left is not."""
    if policy.exists() and policy.read_text() != NO_SERVICES:
        yield
        return
    policy.write_text(NO_SERVICES)
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()
