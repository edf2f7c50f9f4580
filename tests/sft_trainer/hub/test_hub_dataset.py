"""`hub_dataset`: a hub's split for the Python API, downloaded once a machine."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from sft_trainer.datasets.hub import hub_dataset
from sft_trainer.datasets.read import first_rows
from sftjob.failure import JobFailure
from tests.hub_server import HubServer
from tests.sft_trainer.hub.parquet import parquet

URI = "hf://datasets/tiny/chats"
HELD = "data/train-00000-of-00001.parquet"


def test_ranks_that_ask_at_once_download_once_and_read_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with HubServer() as hub, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        test = "data/test-00000-of-00001.parquet"
        hub.dataset("tiny/chats").commit({HELD: parquet([{"text": "a"}]), test: parquet([{"text": "b"}])})
        hub.held[HELD] = 0
        ranks = [pool.submit(hub_dataset, URI) for _ in range(2)]
        hub.release()
        first, second = (rank.result(timeout=300) for rank in ranks)
        assert first == second
        assert [row.value for _, row in first_rows(first)] == [{"text": "a"}]
        assert hub.files_asked() == [HELD]
        assert [row.value for _, row in first_rows(hub_dataset(URI, split="test"))] == [{"text": "b"}]
        with pytest.raises(
            JobFailure, match=r"hub_dataset\.split: 'tset' is none of tiny/chats; use one of train, test"
        ):
            hub_dataset(URI, split="tset")


def test_what_is_of_no_hub_is_refused() -> None:
    with pytest.raises(JobFailure, match=r"hub_dataset: 'chats\.jsonl' is not of a hub; give its path to anno_path"):
        hub_dataset("chats.jsonl")
