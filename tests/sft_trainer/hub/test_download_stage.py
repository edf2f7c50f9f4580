"""The download stage against a hub on this machine."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sft_trainer.downloads.transfer import size_of
from sft_trainer.from_plan import run_options
from tests.hub_server import HubServer
from tests.sft_trainer.download_node import Node, downloaded, nodes_of, until

MIB = 1 << 20
CONFIG = b'{"model_type": "llama"}'
WEIGHTS = os.urandom(1 << 16) * 400
"""26 MB: more than the client writes at once."""
MODEL = {
    "config.json": CONFIG,
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "model.safetensors": WEIGHTS,
    "README.md": b"# Model",
    "consolidated.safetensors": b"the same again",
    "pytorch_model.bin": b"a pickle",
    "model-Q4.gguf": b"another form",
    "onnx/model.onnx": b"yet another",
    "onnx/config.json": b"{}",
}
NEEDED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "additional_chat_templates/tools.jinja",
    "model.safetensors",
}


@pytest.fixture
def node(tmp_path: Path, hub: HubServer) -> Iterator[Callable[..., Node]]:
    model = {"loadFrom": {"uri": "hf://tiny/llama"}}
    with nodes_of(tmp_path, model=model, environment={"HF_ENDPOINT": hub.url}) as make:
        yield make


def test_of_a_model_comes_what_training_needs_and_no_more(hub: HubServer, node: Callable[..., Node]) -> None:
    sha = hub.model("tiny/llama").commit(MODEL)
    one = node()
    assert one.run() == 0
    options = run_options(one.plan)
    assert options.load_from == options.tokenizer_path
    assert downloaded(Path(options.load_from)) == {path: MODEL[path] for path in NEEDED}
    assert sorted(hub.files_asked()) == sorted(NEEDED)
    assert one.progress.resolved is not None
    assert one.progress.resolved.model_revision == sha
    assert (one.progress.stage, one.progress.detail) == ("DownloadingModel", "hf://tiny/llama: 26.2 of 26.2 MB")


def test_of_sharded_weights_comes_what_the_index_names(hub: HubServer, node: Callable[..., Node]) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    shards = {"model-00001-of-00002.safetensors": b"one", "model-00002-of-00002.safetensors": b"two"}
    others = {"model-00001-of-00009.safetensors": b"of another split", "config.json": CONFIG}
    files = shards | others | {"model.safetensors.index.json": json.dumps(index).encode()}
    hub.model("tiny/llama").commit(files)
    one = node()
    assert one.run() == 0
    wanted = files.keys() - {"model-00001-of-00009.safetensors"}
    assert downloaded(Path(run_options(one.plan).load_from)) == {path: files[path] for path in wanted}


def test_tokenizer_and_data_have_revisions_of_their_own(hub: HubServer, node: Callable[..., Node]) -> None:
    hub.model("tiny/llama").commit(MODEL)
    tokenizer = hub.model("tiny/llama").commit(MODEL | {"tokenizer.json": b'{"old": 1}'}, ref="refs/pr/1")
    rows = hub.dataset("tiny/chats").commit(
        {
            "train.jsonl": b"{}\n",
            "parts/1.jsonl": b"{}\n",
            "parts/2.jsonl": b"[]\n",
            "parts/2/en/parts/3.jsonl": b"{}\n\n",
            "parts/2/en/dataset_info.json": b"{}",
            "parts/.old/4.jsonl": b"hidden",
            "parts/2/photos.tar": b"is not read",
        }
    )
    one = node(
        model={
            "loadFrom": {"uri": "hf://tiny/llama"},
            "tokenizer": {"uri": "hf://tiny/llama", "revision": "refs/pr/1"},
        },
        data=[
            {"name": "own", "uri": "file:///chats.jsonl"},
            {"name": "file", "uri": "hf://datasets/tiny/chats/train.jsonl"},
            {"name": "folder", "uri": "hf://datasets/tiny/chats/parts/"},
        ],
    )
    assert one.run() == 0
    options = run_options(one.plan)
    assert (Path(options.tokenizer_path) / "tokenizer.json").read_bytes() == b'{"old": 1}'
    assert not (Path(options.tokenizer_path) / "model.safetensors").exists()
    own, file, folder = (entry.dataset.anno_path for entry in options.dataloader_cfg.dataset_config_list)
    assert own == Path("/chats.jsonl")
    assert file.read_bytes() == b"{}\n"
    assert downloaded(folder) == {"1.jsonl": b"{}\n", "2.jsonl": b"[]\n", "2/en/parts/3.jsonl": b"{}\n\n"}
    assert one.progress.resolved is not None
    assert one.progress.resolved.tokenizer_revision == tokenizer
    assert one.progress.resolved.data_revisions == ["", rows, rows]
    assert one.progress.stage == "DownloadingData"


def test_a_cut_connection_is_taken_up_where_it_broke(hub: HubServer, node: Callable[..., Node]) -> None:
    hub.model("tiny/llama").commit(MODEL)
    hub.cuts["model.safetensors"] = [11 * MIB, 12 * MIB]
    one = node()
    assert one.run() == 0
    assert (Path(run_options(one.plan).load_from) / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [request.range for request in hub.requests if request.path == "model.safetensors" and request.is_file]
    # The client writes 10 MiB at once.
    assert ranges == [None, f"bytes={10 * MIB}-", f"bytes={20 * MIB}-"]


def test_after_a_kill_the_next_attempt_goes_on_in_the_middle_of_the_file(
    hub: HubServer, node: Callable[..., Node]
) -> None:
    hub.model("tiny/llama").commit(MODEL)
    hub.held["model.safetensors"] = 21 * MIB
    first = node().start()
    partial = Path(first.plan.storage) / "cache/hub/model/partial"
    until(lambda: partial.is_dir() and any((size_of(file) or 0) >= 20 * MIB for file in partial.iterdir()))
    assert first.process is not None
    first.process.kill()
    first.wait()
    hub.release()
    hub.requests.clear()
    second = node(attempt=2)
    assert second.run() == 0
    assert (Path(run_options(second.plan).load_from) / "model.safetensors").read_bytes() == WEIGHTS
    assert [(one.path, one.range) for one in hub.requests if one.is_file] == [
        ("model.safetensors", f"bytes={20 * MIB}-")
    ]
    assert not partial.exists()


def test_a_later_attempt_asks_for_nothing_and_keeps_the_revision_though_main_has_moved(
    hub: HubServer, node: Callable[..., Node]
) -> None:
    sha = hub.model("tiny/llama").commit(MODEL)
    assert node().run() == 0
    hub.model("tiny/llama").commit(MODEL | {"config.json": b'{"model_type": "qwen3"}'})
    hub.requests.clear()
    second = node(attempt=2)
    assert second.run() == 0
    assert hub.requests == []
    assert (Path(run_options(second.plan).load_from) / "config.json").read_bytes() == CONFIG
    assert second.progress.resolved is not None
    assert second.progress.resolved.model_revision == sha


def test_what_was_lost_of_a_download_comes_again_from_the_same_revision(
    hub: HubServer, node: Callable[..., Node]
) -> None:
    hub.model("tiny/llama").commit(MODEL)
    first = node()
    assert first.run() == 0
    os.truncate(Path(run_options(first.plan).load_from) / "model.safetensors", MIB)
    hub.model("tiny/llama").commit(MODEL | {"model.safetensors": b"another" * MIB})
    hub.requests.clear()
    assert node(attempt=2).run() == 0
    assert (Path(run_options(first.plan).load_from) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.files_asked() == ["model.safetensors"]


def test_of_several_nodes_only_the_first_downloads(hub: HubServer, node: Callable[..., Node]) -> None:
    hub.model("tiny/llama").commit(MODEL)
    zero, other = node(nodes_=2), node(nodes_=2, rank=1)
    other.start()
    assert other.process is not None
    ended = other.process.poll
    until(lambda: other.progress.detail or ended() is not None)
    assert other.progress.detail == "hf://tiny/llama: node 0 downloads it"
    assert hub.requests == []
    assert zero.run() == 0
    assert other.wait() == 0
    assert sorted(hub.files_asked()) == sorted(NEEDED)


def test_the_token_opens_a_private_model_and_goes_to_no_other_host(hub: HubServer, node: Callable[..., Node]) -> None:
    hub.model("tiny/llama").commit(MODEL)
    hub.model("tiny/llama").token = "hf_secret"
    one = node(HF_TOKEN="hf_secret")
    assert one.run() == 0
    # The client asks something else of its own, which is nobody's secret.
    asked = [request for request in hub.requests if request.path != "/api/agent-harnesses"]
    told = {(request.is_elsewhere, request.authorization) for request in asked}
    assert told == {(False, "Bearer hf_secret"), (True, None)}


def test_a_hub_that_is_busy_is_asked_again(hub: HubServer, node: Callable[..., Node]) -> None:
    hub.model("tiny/llama").commit(MODEL)
    hub.busy = [503]
    assert node().run() == 0


def test_content_that_a_mirror_has_changed_is_not_trained_from(hub: HubServer, node: Callable[..., Node]) -> None:
    hub.model("tiny/llama").commit(MODEL)
    hub.changes["model.safetensors"] = lambda content: content[:-1] + b"?"
    one = node()
    # Not 66: another attempt, or another way to the hub, may bring the right one.
    assert one.run() == 70
    assert one.report.reason == "HubUnreachable"
    assert "model.safetensors of hf://tiny/llama arrived twice with other content" in one.report.message
    assert not (Path(run_options(one.plan).load_from) / "model.safetensors").exists()


def private(hub: HubServer) -> None:
    hub.model("tiny/llama").token = "hf_secret"


def gated(hub: HubServer) -> None:
    private(hub)
    hub.model("tiny/llama").is_gated = True


def without_safetensors(hub: HubServer) -> None:
    hub.model("tiny/llama").commit({"config.json": CONFIG, "pytorch_model.bin": b"a pickle"})


def nothing(_: HubServer) -> None:
    pass


LLAMA = {"loadFrom": {"uri": "hf://tiny/llama"}}
REFUSED: list[tuple[str, Callable[[HubServer], None], dict[str, Any], int, list[str]]] = [
    (
        "no such model",
        nothing,
        {"model": {"loadFrom": {"uri": "hf://tiny/lama"}}},
        66,
        ["spec.model.loadFrom.uri: hf://tiny/lama is not found at http://127.0.0.1", "correct the name"],
    ),
    (
        "no such revision",
        nothing,
        {"model": {"loadFrom": {"uri": "hf://tiny/llama", "revision": "v9"}}},
        66,
        ["spec.model.loadFrom.revision: 'v9' is no branch, tag or commit of tiny/llama"],
    ),
    (
        "private, no token",
        private,
        {"model": LLAMA},
        66,
        [
            "hf://tiny/llama is not found",
            "(401)",
            "there is no token",
            "set HF_TOKEN, from a Secret through spec.compute.env",
        ],
    ),
    (
        "private, wrong token",
        private,
        {"model": LLAMA, "HF_TOKEN": "hf_other"},
        66,
        ["HF_TOKEN does not open it"],
    ),
    (
        "gated, no token",
        gated,
        {"model": LLAMA},
        66,
        ["spec.model.loadFrom.uri: hf://tiny/llama is gated, and there is no token; accept its terms", "set HF_TOKEN"],
    ),
    (
        "no safetensors",
        without_safetensors,
        {"model": LLAMA},
        66,
        ["neither model.safetensors nor model.safetensors.index.json, but only pytorch_model.bin"],
    ),
    (
        "no such dataset",
        nothing,
        {"data": [{"name": "chats", "uri": "hf://datasets/tiny/chat/train.jsonl"}]},
        65,
        ["spec.data.datasets[0].uri: hf://datasets/tiny/chat/train.jsonl is not found"],
    ),
    (
        "no such file",
        nothing,
        {"data": [{"name": "chats", "uri": "hf://datasets/tiny/chats/test.jsonl"}]},
        65,
        ["spec.data.datasets[0].uri: there is nothing at test.jsonl of tiny/chats at main; name a file"],
    ),
    (
        "a folder without rows",
        nothing,
        {"data": [{"name": "chats", "uri": "hf://datasets/tiny/chats/images"}]},
        65,
        ["spec.data.datasets[0].uri: hf://datasets/tiny/chats/images: no file in it ends in .jsonl, "],
    ),
    (
        "a folder of splits",
        nothing,
        {"data": [{"name": "chats", "uri": "hf://datasets/tiny/chats/all"}]},
        65,
        [
            "spec.data.datasets[0].uri: hf://datasets/tiny/chats/all/en: its folders are splits of a dataset, test, "
            "train; name one of them"
        ],
    ),
    (
        "told to stay offline",
        nothing,
        {"model": LLAMA, "HF_HUB_OFFLINE": "1"},
        66,
        ["hf://tiny/llama is not downloaded yet, and HF_HUB_OFFLINE forbids it; unset it"],
    ),
]


@pytest.mark.parametrize(
    ("spoil", "wanted", "code", "said"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_a_refusal_names_field_value_and_remedy(
    hub: HubServer,
    node: Callable[..., Node],
    spoil: Callable[[HubServer], None],
    wanted: dict[str, Any],
    code: int,
    said: list[str],
) -> None:
    hub.model("tiny/llama").commit(MODEL | {"model.safetensors": b"small"})
    splits = {"all/en/train/1.jsonl": b"{}\n", "all/en/test/1.jsonl": b"{}\n"}
    hub.dataset("tiny/chats").commit({"train.jsonl": b"{}\n", "images/1.png": b"", **splits})
    spoil(hub)
    one = node(**wanted)
    assert one.run() == code
    for words in said:
        assert words in one.report.message
