"""What a machine lacks for a cluster is said all at once, each lack with its remedy."""

import dataclasses
from pathlib import Path

import pytest

from cluster.machine import GIB, Backend, Machine, is_hopeless, problems

GOOD = Machine(
    system="linux",
    docker_answers=False,
    is_root=True,
    memory_bytes=24 * GIB,
    free_bytes=60 * GIB,
    folder=Path("/cache"),
    cgroup_version=1,
    go_version=(1, 26),
    missing=("kind",),
    taken_ports=(5000,),
    taken_ranges=(),
    is_built=False,
)


def built(**facts: object) -> list[str]:
    return problems(dataclasses.replace(GOOD, **facts), Backend.BUILT)


def kind(**facts: object) -> list[str]:
    return problems(dataclasses.replace(GOOD, docker_answers=True, **facts), Backend.KIND)


def test_a_machine_that_has_everything_has_no_problem() -> None:
    assert built() == []
    assert built(cgroup_version=2, go_version=(1, 26), free_bytes=14 * GIB) == []
    assert kind(missing=(), taken_ports=(), is_root=False, cgroup_version=None, system="darwin") == []


def test_every_lack_is_named_at_once_with_what_to_do() -> None:
    assert built(
        is_root=False,
        memory_bytes=2 * GIB,
        free_bytes=5 * GIB,
        cgroup_version=None,
        go_version=(1, 19),
        missing=("etcd", "/usr/lib/cni/bridge"),
        taken_ranges=("10.244.0.0/24 (docker0)",),
    ) == [
        "user: not root; namespaces, networks and cgroups need it: sudo python -m cluster ...",
        "cgroups: neither version 1 nor 2 is mounted under /sys/fs/cgroup; mount one of them",
        "packages: missing containernetworking-plugins, etcd-server: "
        "apt-get install --yes containernetworking-plugins etcd-server",
        "addresses: the route 10.244.0.0/24 (docker0) lies in the cluster's 10.244.0.0/16 or 10.96.0.0/16; remove it",
        "memory: 2.0 GiB available of the 4 GiB that the cluster and a small job need; end what takes it",
        "disk: /cache has 5.0 GiB free of the 14 GiB needed; free 9.0 GiB, or set XDG_CACHE_HOME to a larger disk",
        "go: 1.19 is too old; the programs are built with 1.26 or later: install it",
    ]
    assert kind() == [
        "kind: not found, and a Docker engine answers: go install sigs.k8s.io/kind@v0.30.0, "
        "or build without Docker: sudo python -m cluster up --backend built",
        "port 5000: taken, and the image registry needs it; see who listens: ss -ltnp sport = :5000",
    ]


def test_once_built_neither_go_nor_its_room_on_disk_is_needed() -> None:
    assert built(is_built=True, go_version=None, free_bytes=4 * GIB) == []
    assert built(go_version=None) == ["go: not found; the programs are built with 1.26 or later: install it"]
    assert built(is_built=True, free_bytes=3 * GIB) == [
        "disk: /cache has 3.0 GiB free of the 4 GiB needed; free 1.0 GiB, or set XDG_CACHE_HOME to a larger disk"
    ]


@pytest.mark.parametrize(
    ("docker_answers", "system", "is_root", "hopeless"),
    [
        (False, "linux", True, False),
        (False, "linux", False, True),
        (False, "darwin", True, True),
        (True, "linux", False, False),
        (True, "darwin", False, False),
    ],
)
def test_without_docker_only_root_on_linux_can(
    docker_answers: bool, system: str, is_root: bool, hopeless: bool
) -> None:
    assert is_hopeless(docker_answers=docker_answers, system=system, is_root=is_root) is hopeless
    if hopeless:
        assert built(system=system, is_root=is_root) != []


def test_a_path_that_commands_would_take_apart_is_refused() -> None:
    assert built(folder=Path("/home/a b/.cache")) == [
        "folder: /home/a b/.cache has characters that commands take apart; "
        "set XDG_CACHE_HOME to a path of letters, digits and ._-/"
    ]
