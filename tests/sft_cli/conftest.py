"""The user of every test here, whose processes are ended with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sft_user import User

from sft_operator.local.node import LocalNode


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[User]:
    user = User(tmp_path, monkeypatch, capsys)
    yield user
    for process in user.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    for pid in tmp_path.glob("**/node-*/pid"):
        LocalNode(pid.parent, rank=0).kill()
