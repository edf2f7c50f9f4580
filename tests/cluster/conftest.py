"""A machine without a cluster, or with one, for the tests of this folder."""

from collections.abc import Iterator

import pytest
from real_cluster import Cluster, Machine, run_tool

from cluster.machine import Backend
from cluster.parts import is_alive, parts
from cluster.place import Record, cache_folder, cluster_folder, read_record


@pytest.fixture
def without_cluster() -> Iterator[Machine]:
    """The machine before the test; whatever the test leaves is taken down."""
    refuse_to_take_away_a_users_cluster()
    before = Machine()
    yield before
    run_tool("down")


def refuse_to_take_away_a_users_cluster() -> None:
    """One of which nothing lives, after a restart of the machine or a test run that was killed, may go."""
    there = read_record(cluster_folder(cache_folder()))
    if there is None:
        return
    assert _is_dead(there), "a cluster is up, and these tests would take it away; first: python -m cluster down"
    run_tool("down")


def _is_dead(record: Record) -> bool:
    cache = cache_folder()
    every = parts(cluster_folder(cache), cache, nodes=record.nodes)
    return record.backend is Backend.BUILT and not any(is_alive(part) for part in every)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes and the trainer's image; taken down after the tests of a file."""
    refuse_to_take_away_a_users_cluster()
    try:
        up = run_tool("up", "--nodes", "2")
        assert up.returncode == 0, up.stdout
        images = run_tool("images")
        assert images.returncode == 0, images.stdout
        yield Cluster(cluster_folder(cache_folder()))
    finally:
        run_tool("down")
