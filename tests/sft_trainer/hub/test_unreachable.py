"""A hub that nobody can reach: asked for a while, then left to the next attempt."""

import socket
from pathlib import Path

import pytest
from huggingface_hub import constants

from sft_trainer.downloads import patience
from sft_trainer.downloads.sources import HubSource
from sft_trainer.hub.download import commit_of
from sftjob.failure import NEVER_RETRIED, JobFailure, exit_code


def test_what_is_logged_of_a_refusal_has_no_signature(caplog: pytest.LogCaptureFixture) -> None:
    """A hub sends whoever downloads on to an address that its store has signed."""
    waits = patience.Patience("the hub", lambda _: None, refusals=(OSError,), is_passing=lambda _: True)
    waits._pause = 0
    waits.wait(OSError("'503' for url 'https://cdn.example/a.bin?X-Amz-Signature=SECRET&b=c' at once"))
    assert "https://cdn.example/a.bin?...' at once; asking again" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_hub_that_can_t_be_reached_is_asked_again_and_then_left_to_another_attempt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        source = HubSource(
            field="spec.model.loadFrom",
            uri="hf://tiny/llama",
            revision="main",
            kind="model",
            repository="tiny/llama",
            path="",
            takes_weights=True,
            folder=tmp_path,
        )
        told: list[str] = []

        def lose_patience(detail: str) -> None:
            told.append(detail)
            monkeypatch.setattr(patience, "PATIENCE_SECONDS", -1)

        with pytest.raises(JobFailure) as ended:
            commit_of(source, on_detail=lose_patience)
    assert told == ["the hub does not answer (ConnectError), asking again"]
    assert f"spec.model.loadFrom.uri: hf://tiny/llama: no useful answer from {url} (ConnectError" in ended.value.message
    assert "HF_ENDPOINT" in ended.value.message
    assert ended.value.reason not in NEVER_RETRIED
    assert exit_code(ended.value.reason) == 70
