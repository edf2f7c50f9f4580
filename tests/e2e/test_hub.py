"""`sft run` of a model and data that lie on a hub: downloaded once, over a connection that breaks, by any attempt."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.local_run import LocalRun, kill
from hub_server import HubServer, files_of
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from tests.sft_trainer.hub.parquet import parquet
from tests.sft_trainer.model.tiny_models import save_random_model
from tests.sft_trainer.train.small_run import TRAINED, VOCAB_SIZE, save_tokenizer

MIB = 1 << 20
TOKEN = "hf_of_the_user"
CARD = b"""---
configs:
- config_name: short
  data_files: [{split: train, path: short/train-*}]
- config_name: long
  data_files: long/*
---
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """With a model of 20 MB, more than the client writes at once."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 128}
    folder = tmp_path / "published"
    save_random_model(folder, "llama", vocab_size=VOCAB_SIZE, **sizes)
    save_tokenizer(folder)
    with HubServer() as hub:
        hub.model("tiny/llama").commit(files_of(folder) | {"pytorch_model.bin": b"not wanted"})
        hub.model("tiny/llama").token = TOKEN
        hub.dataset("tiny/chats").commit(
            {
                "README.md": CARD,
                "short/train-00000-of-00001.parquet": parquet([{"messages": chat} for chat in TRAINED]),
                "long/0.jsonl": b"not asked for",
            }
        )
        yield hub


@pytest.fixture
def run(tmp_path: Path, hub: HubServer) -> Iterator[LocalRun]:
    spec = {
        "model": {"loadFrom": {"uri": "hf://tiny/llama"}},
        "data": {
            "datasets": [{"name": "chats", "uri": "hf://datasets/tiny/chats", "config": "short"}],
            "packing": {"maxLength": 64},
        },
        "training": {"totalStep": 12},
        "checkpoint": {"everySteps": 1},
        "output": [{"uri": "pvc://results/model"}],
    }
    manifest = {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": {"name": "hub"}, "spec": spec}
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    run = LocalRun(tmp_path / "run", manifest, environment)
    yield run
    run.stop()


def test_a_run_from_the_hub_downloads_once_and_goes_on_with_the_same_model_after_a_kill(
    run: LocalRun, hub: HubServer
) -> None:
    sha = hub.model("tiny/llama").refs["main"]
    hub.cuts["model.safetensors"] = [11 * MIB]
    run.start()
    run.until_step(2)
    weights = [one for one in hub.requests if one.path == "model.safetensors" and one.is_file]
    assert [one.range for one in weights] == [None, f"bytes={10 * MIB}-"]
    assert {one.authorization for one in weights} == {None}
    assert not {"pytorch_model.bin", "long/0.jsonl"} & set(hub.files_asked())

    hub.model("tiny/llama").commit({"config.json": b"moved on"})
    hub.requests.clear()
    kill(run.rank(0))
    run.succeed()
    assert hub.requests == []
    status = run.status()
    assert [record["reason"] for record in status["attempts"]["history"]] == ["Succeeded", "RankKilled"]
    assert status["resolved"]["modelRevision"] == sha
    assert len(status["resolved"]["dataRevisions"]) == 1
    assert json.loads((run.storage / "run.json").read_text())["resolved"]["modelRevision"] == sha
    model = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert model.config.hidden_size == 512
    card = ModelCard.load(run.folder / "model" / "README.md")
    assert card.data.base_model == "tiny/llama"
    assert f"| Revision of the base model | `{sha}` |" in card.text


def test_a_model_that_is_not_there_ends_the_job_at_once_with_a_remedy(run: LocalRun) -> None:
    run.manifest["spec"]["model"] = {"loadFrom": {"uri": "hf://tiny/lama"}}
    assert run.start().wait() == 66
    assert "spec.model.loadFrom.uri: hf://tiny/lama is not found at http://127.0.0.1" in run.log
    assert "Traceback" not in run.log
    assert [record["reason"] for record in run.status()["attempts"]["history"]] == ["ModelUnreadable"]
