"""What the runs of these tests share: one that nobody disturbs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.local_run import LocalRun, job


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, smollm2: Path, chats: Path) -> LocalRun:
    """Two ranks, from start to end in one attempt."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return LocalRun(folder, job(tokenizer=smollm2.as_uri(), data=chats.as_uri())).start().succeed()


@pytest.fixture
def run(tmp_path: Path, smollm2: Path, chats: Path) -> Iterator[LocalRun]:
    """The same job again, not yet started."""
    run = LocalRun(tmp_path, job(tokenizer=smollm2.as_uri(), data=chats.as_uri()))
    yield run
    run.stop()
