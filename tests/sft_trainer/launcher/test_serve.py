"""Where the launcher's page is reached."""

import http.client
import json
import socket
from pathlib import Path

import pytest

from sft_trainer.launcher.serve import serve_progress
from sft_trainer.progress import write_progress
from sftjob.base import utc_now
from sftjob.progress import Progress, Stage


def attempt_told(scratch: Path, *, asked: str, address: str = ":0") -> int:
    """By a launcher that serves on `address`, to whoever asks on the address `asked`."""
    write_progress(scratch, Progress(attempt=3, stage=Stage.TRAINING, reported_at=utc_now()))
    server = serve_progress(scratch, address=address)
    try:
        connection = http.client.HTTPConnection(asked, int(server.server_address[1]), timeout=30)
        connection.request("GET", "/progress")
        attempt: int = json.load(connection.getresponse())["attempt"]
        connection.close()
        return attempt
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("asked", ["127.0.0.1", "::1"])
def test_without_a_host_it_is_reached_by_ipv4_and_by_ipv6(tmp_path: Path, asked: str) -> None:
    if asked == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    assert attempt_told(tmp_path, asked=asked) == 3


def test_a_machine_without_ipv6_is_reached_by_ipv4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert attempt_told(tmp_path, asked="127.0.0.1") == 3
    with pytest.raises(ConnectionRefusedError):
        attempt_told(tmp_path, asked="::1")


def test_with_a_host_it_is_reached_there_alone(tmp_path: Path) -> None:
    assert attempt_told(tmp_path, asked="127.0.0.1", address="127.0.0.1:0") == 3
    with pytest.raises(ConnectionRefusedError):
        attempt_told(tmp_path, asked="::1", address="127.0.0.1:0")
