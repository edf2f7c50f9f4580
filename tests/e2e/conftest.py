"""What the runs of these tests share: one that nobody disturbs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.local_run import LocalRun, job
from s3_server import S3Server

from tests.sft_trainer.model.tiny_models import save_random_model
from tests.sft_trainer.train.small_run import TRAINED, VOCAB_SIZE, save_tokenizer


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


@pytest.fixture
def sources(s3: S3Server, tmp_path: Path) -> S3Server:
    """A bucket with what `bucket_job` reads."""
    folder = tmp_path / "published"
    save_random_model(folder, "llama", vocab_size=VOCAB_SIZE)
    save_tokenizer(folder)
    s3.put_folder("llama", folder)
    rows = "".join(json.dumps({"messages": chat}) + "\n" for chat in TRAINED)
    s3.put("chats/train.jsonl", rows.encode())
    return s3
