"""A machine without a cluster, or with one and rooms in it, for the tests of this folder."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.local_run import LocalRun
from operator_room import Room, define, reasons, room, small_job
from real_cluster import Cluster, Machine, run_tool

from cluster.machine import Backend
from cluster.parts import is_alive, parts
from cluster.place import Record, cache_folder, cluster_folder, read_record

_numbers = itertools.count(1)


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


@pytest.fixture(scope="module")
def with_jobs(cluster: Cluster) -> Cluster:
    """A cluster that knows SFTJobs."""
    define(cluster)
    return cluster


@pytest.fixture
def own(with_jobs: Cluster, tmp_path: Path, smollm2: Path, chats: Path) -> Iterator[Room]:
    """A namespace for this test, without an operator yet."""
    with room(with_jobs, f"room-{next(_numbers)}", tmp_path, model=smollm2, chats=chats) as made:
        yield made


@pytest.fixture(scope="module")
def finished(
    with_jobs: Cluster, tmp_path_factory: pytest.TempPathFactory, smollm2: Path, chats: Path
) -> Iterator[Room]:
    """Where the small job went from start to end in one attempt; its operator still runs."""
    name = f"finished-{next(_numbers)}"
    with room(with_jobs, name, tmp_path_factory.mktemp("room"), model=smollm2, chats=chats) as made:
        made.start_operator()
        made.apply(small_job())
        assert reasons(made.until_phase("Succeeded")) == ["Succeeded"]
        yield made


@pytest.fixture(scope="module")
def undisturbed(finished: Room) -> LocalRun:
    """What others have to be bit-equal to."""
    return finished.run()
