"""What stands in the way is one sentence with its remedy, and nothing is left behind."""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from real_cluster import Machine, assert_nothing_is_left, needs_root_on_linux, run_tool

from cluster.build import binary_of
from cluster.place import cache_folder

pytestmark = [pytest.mark.cluster, needs_root_on_linux]

UP = f"{sys.executable} -m cluster up --backend built"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def inside(namespaces: str, script: str) -> subprocess.CompletedProcess[str]:
    """`script` in namespaces of its own, where it may break what it likes."""
    command = ["unshare", *namespaces.split(), "sh", "-e", "-c", script]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def docker_that_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the tool asks before it decides; there is no engine behind it."""
    (folder / "docker").write_text("#!/bin/sh\necho 28.0.0\n")
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_not_root(without_cluster: Machine, cache: Path) -> None:
    # In a user namespace without a mapping everyone is nobody.
    refused = inside("--user", UP)
    assert refused.returncode == 1
    assert "user: not root; namespaces, networks and cgroups need it: sudo python -m cluster ...\n" in refused.stdout
    assert not cache.exists()
    assert Machine().more_than(without_cluster) == {}


def test_disk_short(without_cluster: Machine, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    refused = inside("--mount", f"mount -t tmpfs -o size=64m none {small}; XDG_CACHE_HOME={small} {UP}")
    assert refused.returncode == 1
    assert (
        f"disk: {small}/sftjob/cluster has 0.1 GiB free of the 14 GiB needed; free 13.9 GiB, "
        "or set XDG_CACHE_HOME to a larger disk\n"
    ) in refused.stdout
    assert Machine().more_than(without_cluster) == {}


def test_addresses_taken(cache: Path) -> None:
    refused = inside("--net", f"ip link set lo up; ip route add 10.244.3.0/24 dev lo; {UP}")
    assert refused.returncode == 1
    assert (
        "addresses: the route 10.244.3.0/24 (lo) lies in the cluster's 10.244.0.0/16 or 10.96.0.0/16; remove it\n"
    ) in refused.stdout
    assert not cache.exists()


def test_docker_without_kind_and_the_registrys_port_taken(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("kind"):
        pytest.skip("this machine has kind")
    docker_that_answers(tmp_path, monkeypatch)
    (tmp_path / "listen.py").write_text(
        "import socket, subprocess, sys\n"
        "held = [socket.create_server(('127.0.0.1', 5000))]\n"
        "sys.exit(subprocess.run([sys.executable, '-m', 'cluster', 'up']).returncode)\n"
    )
    refused = inside("--net", f"ip link set lo up; {sys.executable} {tmp_path / 'listen.py'}")
    assert refused.returncode == 1
    lines = refused.stdout.splitlines()
    assert lines[:2] == [
        "kind: not found, and a Docker engine answers: go install sigs.k8s.io/kind@v0.30.0, "
        "or build without Docker: sudo python -m cluster up --backend built",
        "port 5000: taken, and the image registry needs it; see who listens: ss -ltnp sport = :5000",
    ]
    assert not cache.exists()


def test_no_engine_where_kind_is_asked_for(cache: Path) -> None:
    refused = run_tool("up", "--backend", "kind")
    assert refused.returncode == 1
    assert refused.stdout.splitlines()[0] == (
        "docker: no engine answers; start it, or leave --backend away to build without Docker"
    )
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("upp",), "Error: No such command 'upp'. Did you mean 'up'?\n"),
        (("up", "--nodes", "3"), "Error: Invalid value for '--nodes': Input should be less than or equal to 2\n"),
        (("up", "--backend", "minikube"), "'minikube' is not one of 'built', 'kind'.\n"),
    ],
)
def test_what_the_command_line_does_not_know(arguments: tuple[str, ...], says: str, cache: Path) -> None:
    refused = run_tool(*arguments)
    assert refused.returncode == 2
    assert says in refused.stdout
    assert "--help" in refused.stdout
    assert not cache.exists()


def test_ports_that_others_have_do_not_matter_to_a_built_cluster(without_cluster: Machine) -> None:
    """Its programs listen in networks of their own."""
    with contextlib.ExitStack() as held:
        for port in (2379, 5000, 6443, 10250):
            try:
                held.enter_context(socket.create_server(("", port)))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # another program's will do as well
                    raise
        done = run_tool("up", "--backend", "built")
    assert done.returncode == 0, done.stdout
    assert run_tool("down").returncode == 0
    assert_nothing_is_left(without_cluster)


def test_a_damaged_program_is_named_with_its_remedy(without_cluster: Machine, tmp_path: Path) -> None:
    """As a power cut can leave it."""
    assert run_tool("build", "--backend", "built").returncode == 0
    whole = cache_folder()
    damaged = tmp_path / "sftjob" / "cluster"
    (damaged / "bin").mkdir(parents=True)
    (damaged / "images").symlink_to(whole / "images")
    for program in (whole / "bin").iterdir():
        (damaged / "bin" / program.name).symlink_to(program)
    kubectl = binary_of(damaged, "kubectl")
    kubectl.unlink()
    kubectl.write_bytes(b"\x7fELF")
    kubectl.chmod(0o755)
    refused = run_tool("up", "--backend", "built", env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)})
    assert refused.returncode == 1
    assert refused.stdout.endswith(f"{kubectl}: Exec format error; delete it, `up` makes it again\n")
    assert run_tool("down").returncode == 0
    assert_nothing_is_left(without_cluster)
