"""Whole datasets of a hub: which files a configuration's split has, downloaded and told apart as the hub's own do."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sft_trainer.datasets.read import first_rows
from sft_trainer.downloads.sources import hub_source
from sft_trainer.from_plan import run_options
from sft_trainer.hub.splits import files_of_split
from sftjob.failure import JobFailure
from sftjob.sources import DatasetSpec
from tests.hub_server import HubServer
from tests.sft_trainer.download_node import Node, nodes_of
from tests.sft_trainer.hub.parquet import parquet


def table(*texts: str) -> bytes:
    return parquet([{"text": text} for text in texts])


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


DECLARED = b"""---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*.parquet
  - split: test
    path: [main/test-*.parquet]
- config_name: socratic
  data_files:
  - split: train
    path:
    - soc/**/*.jsonl
---
# Grade school
"""
MATHS = {
    "README.md": DECLARED,
    ".gitattributes": b"*.parquet filter=lfs",
    "main/train-00000-of-00002.parquet": table("1 + 1", "1 + 2"),
    "main/train-00001-of-00002.parquet": table("2 + 1"),
    "main/test-00000-of-00001.parquet": table("3 + 1"),
    "soc/b/1.jsonl": jsonl("why 2?"),
    "soc/a.jsonl": jsonl("why 1?"),
    "soc/notes.md": b"not data",
}


MODEL = {"preset": "Qwen3Dense0P6B", "tokenizer": {"uri": "file:///m"}}


@pytest.fixture
def node(tmp_path: Path, hub: HubServer) -> Iterator[Callable[..., Node]]:
    with nodes_of(tmp_path, model=MODEL, environment={"HF_ENDPOINT": hub.url}) as make:
        yield make


def texts(node: Node) -> list[list[str]]:
    """What the Trainer would read, in its order."""
    entries = run_options(node.plan).dataloader_cfg.dataset_config_list
    return [[row.value["text"] for _, row in first_rows(entry.dataset.anno_path)] for entry in entries]


def whole(name: str, **parts: str) -> dict[str, Any]:
    return {"name": name, "uri": "hf://datasets/tiny/maths", **parts}


def test_each_configuration_and_split_brings_its_own_files_of_a_private_dataset(
    hub: HubServer, node: Callable[..., Node]
) -> None:
    sha = hub.dataset("tiny/maths").commit(MATHS)
    hub.dataset("tiny/maths").token = "hf_secret"
    wanted = [
        whole("first", config="main"),
        whole("second", config="main", split="test"),
        whole("third", config="socratic", split="train"),
    ]
    one = node(data=wanted, HF_TOKEN="hf_secret")
    assert one.run() == 0
    assert texts(one) == [["1 + 1", "1 + 2", "2 + 1"], ["3 + 1"], ["why 1?", "why 2?"]]
    assert one.progress.resolved is not None
    assert one.progress.resolved.data_revisions == [sha, sha, sha]
    asked = hub.files_asked()
    assert asked.count("README.md") == 3
    assert sorted(path for path in asked if path != "README.md") == sorted(
        path for path in MATHS if path.endswith((".parquet", ".jsonl"))
    )

    hub.dataset("tiny/maths").commit({"README.md": b"moved on", "train.jsonl": jsonl("other")})
    hub.requests.clear()
    assert node(attempt=2, data=wanted, HF_TOKEN="hf_secret").run() == 0
    assert hub.requests == []


def test_a_private_dataset_without_a_token_is_refused_with_the_remedy(
    hub: HubServer, node: Callable[..., Node]
) -> None:
    hub.dataset("tiny/maths").commit(MATHS)
    hub.dataset("tiny/maths").token = "hf_secret"
    one = node(data=[whole("d", config="main")])
    assert one.run() == 65
    assert "hf://datasets/tiny/maths is not found at http://127.0.0.1" in one.report.message
    assert "set HF_TOKEN, from a Secret through spec.compute.env" in one.report.message


def files(listed: dict[str, bytes], folder: Path, **parts: str) -> list[str]:
    """As `download` asks, when the card is there."""
    source = hub_source("spec.data.datasets[0]", DatasetSpec(**whole("d", **parts)), folder=folder)
    for path in ("README.md", "dataset_infos.json"):
        if path in listed:
            source.files.mkdir(parents=True, exist_ok=True)
            (source.files / path).write_bytes(listed[path])
    return files_of_split(source, list(listed))


@pytest.mark.parametrize(
    ("listed", "parts", "found"),
    [
        (
            ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "README.md"],
            {},
            ["data/train-00000-of-00001.parquet"],
        ),
        (["alpaca_data.json", "LICENSE"], {}, ["alpaca_data.json"]),
        (["my-train.jsonl", "dev.jsonl"], {"split": "validation"}, ["dev.jsonl"]),
        (["train/2.jsonl.gz", "train/1.jsonl.gz", "test/1.jsonl.gz"], {}, ["train/1.jsonl.gz", "train/2.jsonl.gz"]),
    ],
    ids=["shards", "one file", "file names", "folders"],
)
def test_where_no_card_tells_the_names_of_files_do(
    tmp_path: Path, listed: list[str], parts: dict[str, str], found: list[str]
) -> None:
    assert files(dict.fromkeys(listed, b""), tmp_path, **parts) == found


def test_the_default_configuration_is_the_one_that_the_card_calls_so(tmp_path: Path) -> None:
    card = DECLARED.replace(b"config_name: socratic", b"config_name: socratic\n  default: true")
    assert files(MATHS | {"README.md": card}, tmp_path) == ["soc/a.jsonl", "soc/b/1.jsonl"]


def declared(data_files: str, *more: str) -> bytes:
    lines = ["---", "configs:", "- config_name: default", f"  data_files: {data_files}", *more, "---"]
    return "\n".join(lines).encode()


REFUSED: list[tuple[str, dict[str, bytes], dict[str, str], str]] = [
    ("no default", MATHS, {}, "config: missing, and tiny/maths has no default; use one of main, socratic"),
    ("no such configuration", MATHS, {"config": "mian"}, "config: 'mian' is none of tiny/maths; use one of main, soc"),
    (
        "no such split",
        MATHS,
        {"config": "main", "split": "validation"},
        "split: 'validation' is none of tiny/maths; use one of train, test",
    ),
    (
        "no train",
        {"test.jsonl": b""},
        {},
        "split: missing, and tiny/maths has no train; use test",
    ),
    (
        "a program",
        {"maths.py": b"import os", "README.md": b"# Maths"},
        {"config": "main"},
        "uri: tiny/maths is made by a program, maths.py, which is not run here; name the Parquet files that the hub "
        "has made of it: hf://datasets/tiny/maths/<config>/<split>, with revision: refs/convert/parquet",
    ),
    (
        "another form",
        {"train.csv": b"a,b"},
        {},
        "uri: train.csv of tiny/maths is no JSONL, JSON, Parquet or Arrow; name files that are, or use the Parquet",
    ),
    ("no data", {"README.md": b"# Soon"}, {}, "uri: nobody can tell which files of tiny/maths are its data (The dir"),
    ("torn archive", {"all.zip": b""}, {}, "uri: nobody can tell which files of tiny/maths are its data (File is not"),
    (
        "broken card",
        {"README.md": b"---\nconfigs: [3]\n---\n", "a.jsonl": b""},
        {},
        "uri: nobody can tell which files of tiny/maths are its data (",
    ),
    (
        "a part of each file",
        {"README.md": declared("a.json", "  field: rows"), "a.json": b""},
        {},
        "config: 'default' of tiny/maths reads its files with field: 'rows', which is not done here; use another",
    ),
    (
        "files of this machine",
        {"README.md": declared(str(Path(__file__).with_name("*.json"))), "a.jsonl": b""},
        {},
        "uri: nobody can tell which files of tiny/maths are its data (",
    ),
    ("a path that leaves", {"../a.jsonl": b""}, {}, "uri: tiny/maths lists a file '../a.jsonl'; name another dataset"),
]


@pytest.mark.parametrize(("listed", "parts", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_no_split_of_a_dataset_is_told_with_those_that_are(
    tmp_path: Path, listed: dict[str, bytes], parts: dict[str, str], said: str
) -> None:
    with pytest.raises(JobFailure) as refused:
        files(listed, tmp_path, **parts)
    assert refused.value.message.startswith(f"spec.data.datasets[0].{said}")


def test_a_card_that_names_files_outside_of_its_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    listed = {"README.md": declared(str(tmp_path / "mine.jsonl")), "a.jsonl": b""}
    with pytest.raises(JobFailure, match=r"its card names .*mine.jsonl, which is not in it"):
        files(listed, tmp_path / "job")
