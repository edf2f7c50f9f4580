"""The hub that the tests of this folder download from."""

from collections.abc import Iterator

import pytest

from tests.hub_server import HubServer


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub
