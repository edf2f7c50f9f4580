"""`hub_dataset`: a hub's split for the Python API, downloaded once a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft_trainer.datasets.hub import hub_dataset
from sft_trainer.datasets.read import first_rows
from sftjob.failure import JobFailure
from tests.hub_server import HubServer
from tests.sft_trainer.download_node import until
from tests.sft_trainer.hub.parquet import parquet

URI = "hf://datasets/tiny/chats"
TRAIN, TEST = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
SCRIPT = """
import logging, sys
from sft_trainer.datasets.hub import hub_dataset
logging.basicConfig(level=logging.INFO)
print(hub_dataset(sys.argv[1], split=sys.argv[2]))
"""


def test_ranks_that_ask_at_once_download_once_and_read_the_same(tmp_path: Path) -> None:
    with HubServer() as hub:
        hub.dataset("tiny/chats").commit({TRAIN: parquet([{"text": "a"}]), TEST: parquet([{"text": "b"}])})
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}

        def rank(name: str, split: str) -> subprocess.Popen[str]:
            with (tmp_path / name).open("w") as log:
                command = [sys.executable, "-c", SCRIPT, URI, split]
                return subprocess.Popen(command, env=os.environ | home, stdout=subprocess.PIPE, stderr=log, text=True)

        def said(name: str) -> str:
            return (tmp_path / name).read_text()

        hub.held[TRAIN] = 0
        ranks = [rank("first", "train"), rank("second", "train")]
        waits = f"{URI}: another process downloads it"
        until(lambda: waits in said("first") + said("second") or hub.files_asked() == [TRAIN, TRAIN])
        hub.release()
        answers = [each.communicate(timeout=300)[0].strip() for each in [*ranks, rank("third", "test")]]
        assert answers[0] == answers[1] != answers[2]
        assert [row.value for _, row in first_rows(Path(answers[0]))] == [{"text": "a"}]
        assert [row.value for _, row in first_rows(Path(answers[2]))] == [{"text": "b"}]
        assert hub.files_asked() == [TRAIN, TEST]
        last = rank("fourth", "tset")
        assert last.communicate(timeout=300)[0] == ""
        assert "hub_dataset.split: 'tset' is none of tiny/chats; use one of train, test" in said("fourth")


def test_what_is_of_no_hub_is_refused() -> None:
    with pytest.raises(JobFailure, match=r"hub_dataset: 'chats\.jsonl' is not of a hub; give its path to anno_path"):
        hub_dataset("chats.jsonl")
