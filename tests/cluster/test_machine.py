"""What a machine lacks for a cluster is said all at once, each lack with its remedy."""

import dataclasses
import socket
from pathlib import Path

from cluster.machine import GIB, Machine, problems, read_machine

GOOD = Machine(
    is_root=True,
    memory_bytes=24 * GIB,
    free_bytes=60 * GIB,
    folder=Path("/cache"),
    cgroup_version=1,
    go_version=(1, 26),
    missing=(),
    taken_ports=(),
    is_built=False,
)


def without(**facts: object) -> list[str]:
    return problems(dataclasses.replace(GOOD, **facts))


def test_a_machine_that_has_everything_has_no_problem() -> None:
    assert problems(GOOD) == []
    assert without(cgroup_version=2, go_version=(1, 24), free_bytes=37 * GIB) == []


def test_every_lack_is_named_at_once_with_what_to_do() -> None:
    assert without(
        is_root=False,
        memory_bytes=2 * GIB,
        free_bytes=30 * GIB,
        cgroup_version=None,
        go_version=(1, 19),
        missing=("etcd", "/usr/lib/cni/bridge"),
        taken_ports=(6443, 10250),
    ) == [
        "user: not root; containers, networks and cgroups need it: sudo python -m cluster ...",
        "memory: 2.0 GiB; the cluster and a small job need 4 GiB",
        "disk: /cache has 30.0 GiB free of the 37 GiB needed; free 7.0 GiB, or set XDG_CACHE_HOME to a larger disk",
        "cgroups: neither version 1 nor 2 is mounted under /sys/fs/cgroup; mount one of them",
        "packages: missing containernetworking-plugins, etcd-server: "
        "apt-get install --yes containernetworking-plugins etcd-server",
        "go: 1.19 is too old; the programs are built with 1.24 or later: install it",
        "port 6443: taken, and the API server needs it; see who listens: ss -ltnp sport = :6443",
        "port 10250: taken, and the kubelet needs it; see who listens: ss -ltnp sport = :10250",
    ]


def test_once_built_neither_go_nor_its_room_on_disk_is_needed() -> None:
    assert without(is_built=True, go_version=None, free_bytes=25 * GIB) == []
    assert without(go_version=None) == ["go: not found; the programs are built with 1.24 or later: install it"]
    assert without(is_built=True, free_bytes=24 * GIB) == [
        "disk: /cache has 24.0 GiB free of the 25 GiB needed; free 1.0 GiB, or set XDG_CACHE_HOME to a larger disk"
    ]


def test_a_port_on_which_something_listens_is_taken(tmp_path: Path) -> None:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", 10259))
            listener.listen()
        except OSError:
            pass  # taken by something else: as good
        assert 10259 in read_machine(tmp_path / "not" / "yet", is_built=True).taken_ports
