"""What the runs of these tests share: chats, and one run that nobody disturbs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.local_run import LocalRun, job

from examples.tickets import tickets


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tickets(60, seed=3)))
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, smollm2: Path, chats: Path) -> LocalRun:
    """Two ranks, from start to end in one attempt."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return LocalRun(folder, job(tokenizer=smollm2, data=chats)).start().succeed()


@pytest.fixture
def run(tmp_path: Path, smollm2: Path, chats: Path) -> Iterator[LocalRun]:
    """The same job again, not yet started."""
    run = LocalRun(tmp_path, job(tokenizer=smollm2, data=chats))
    yield run
    run.stop()
