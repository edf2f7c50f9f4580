"""A machine without a cluster, or with one, for the tests of this folder."""

from collections.abc import Iterator

import pytest
from real_cluster import Cluster, Machine, run_tool

from cluster.place import LINK


@pytest.fixture
def without_cluster() -> Iterator[Machine]:
    """The machine before the test; whatever the test leaves is taken down."""
    assert not LINK.is_symlink(), "a cluster is up, and this test would take it away; first: python -m cluster down"
    before = Machine()
    yield before
    run_tool("down")


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Two nodes and the trainer's image; taken down after this folder's tests."""
    assert not LINK.is_symlink(), "a cluster is up, and these tests would take it away; first: python -m cluster down"
    try:
        up = run_tool("up", "--nodes", "2")
        assert up.returncode == 0, up.stdout
        images = run_tool("images")
        assert images.returncode == 0, images.stdout
        yield Cluster(LINK.resolve())
    finally:
        run_tool("down")
