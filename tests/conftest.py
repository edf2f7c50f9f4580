"""What tests of every room share: the two options of the command line, the pretrained model, and an object store."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from s3_server import S3Server

ROOT = Path(__file__).resolve().parents[1]
# `pytest` alone, unlike `python -m pytest`, leaves the root out, where `examples` and `benchmarks` lie.
sys.path.insert(0, str(ROOT))
# A shell has it ignored for what it runs in the background, and so would whatever a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Its own limits of time depend on what else the machine does; and what it finds is to be the newest change's fault.
hypothesis.settings.register_profile(
    "any-machine", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="Every case at full size.")
    parser.addoption("--chat-data", type=Path, help="A JSONL file of real chats for the tests that train on some.")


WITHOUT_CLUSTER = pytest.StashKey[str]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_cluster_out(config, [item for item in items if item.get_closest_marker("cluster")])
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="full size: needs --full"))


def _leave_cluster_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    from cluster.kind import engine_answers
    from cluster.machine import is_hopeless

    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not items or not is_hopeless(docker_answers=engine_answers(), system=sys.platform, is_root=is_root):
        return
    reason = f"{len(items)} tests of the cluster were left out: it needs a Docker engine, or root on Linux"
    if os.environ.get("CI") == "true":
        raise pytest.UsageError(f"{reason}; with CI=true that is a failure")
    config.stash[WITHOUT_CLUSTER] = reason
    for item in items:
        item.add_marker(pytest.mark.skip(reason="no cluster can work here"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if WITHOUT_CLUSTER in config.stash:
        terminalreporter.write_line(config.stash[WITHOUT_CLUSTER], yellow=True)


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3Server]":
    from s3_server import S3Server

    with S3Server(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture
def s3(minio: "S3Server") -> "S3Server":
    """A real MinIO with an empty bucket, `bucket`."""
    minio.clear()
    return minio


@pytest.fixture
def s3_credentials(s3: "S3Server", monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address and keys, in the environment of the tests themselves."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of a real pretrained model with tokenizer and chat template; read-only. Made once, in 45 s."""
    from examples.smollm2 import prepare

    return prepare()


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 support tickets as JSONL."""
    from examples.tickets import tickets

    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tickets(60, seed=3)))
    return path


@pytest.fixture(scope="session")
def chat_data(request: pytest.FixtureRequest) -> Path | None:
    """A user's JSONL file of chats, from `make test CHAT_DATA=...`; None where none was named."""
    path: Path | None = request.config.getoption("--chat-data")
    if path is not None and not path.is_file():
        pytest.exit(f"--chat-data: {path} is not a file; name a JSONL file of chats or leave the option out", 2)
    return path
