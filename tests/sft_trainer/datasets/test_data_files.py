"""The forms of data files: each gives the rows that its JSONL would, and names where a bad one stands."""

import gzip
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_trainer.datasets import open_tokens
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig
from sft_trainer.datasets.files import files_of_folder
from sft_trainer.datasets.prepare import PreparedData, prepare_data
from sft_trainer.datasets.shown import log_receipt, log_samples
from sftjob.failure import JobFailure, Reason
from tests.sft_trainer.datasets.chats import CHATML_TOKENS, pair, trl_template, write_chats

TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": "d", "parameters": {"type": "object", "properties": properties}},
    }
    for name, properties in (("heat", {"room": {"type": "number"}}), ("wind", {"town": {"type": "string"}}))
]
CALL = {"type": "function", "function": {"name": "heat", "arguments": {"room": 4}}}
OTHER_CALL = {"type": "function", "function": {"name": "wind", "arguments": {"town": "Ulm"}}}
ROWS: list[dict[str, Any]] = [
    # First, since a table made of a list has the columns of its first row.
    {"messages": [pair("Warm?", "")[0], {"role": "assistant", "tool_calls": [CALL, OTHER_CALL]}], "tools": TOOLS},
    {"messages": pair("Hi", "Hello there")},
    *({"messages": pair(f"What is {number}?", "It is four. " * number)} for number in range(40)),
]


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(trl_template("qwen3.jinja"), tokens=CHATML_TOKENS, eos_token="<|im_end|>").save_pretrained(folder)
    return str(folder)


def prepared(path: Path, tokenizer: str, *, workers: int = 1, budget: int = 0) -> PreparedData:
    dataset = DatasetConfig(name="d", anno_path=path)
    config = DataloaderConfig(
        dataset_config_list=[{"dataset": dataset}], num_workers=workers, bad_line_budget=budget, pack_max_length=4096
    )
    return prepare_data(config, tokenizer_path=tokenizer, cache_dir=path.parent / "cache", seed=1)


def tokens(data: PreparedData) -> list[list[int]]:
    return [data.sample(sample)[0].tolist() for sample in range(data.caches[0].meta.samples)]


def write(path: Path, rows: list[Any], *, row_group_size: int = 7) -> Path:
    """In the form of its ending."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    match path.name.split(".", 1)[1]:
        case "jsonl" | "ndjson" | "txt":
            path.write_bytes(lines)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines, mtime=0))
        case "jsonl.zst":
            path.write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
        case "json":
            path.write_text("\ufeff \n" + json.dumps(rows, indent=1))
        case "json.gz":
            path.write_bytes(gzip.compress(json.dumps(rows).encode()))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size, compression="zstd")
        case "arrow":
            table = pa.Table.from_pylist(rows)
            with pa.ipc.new_file(path, table.schema) as file:
                file.write_table(table, max_chunksize=5)
    return path


@pytest.fixture(scope="module")
def plain(tokenizer, tmp_path_factory) -> list[list[int]]:
    return tokens(prepared(write(tmp_path_factory.mktemp("plain") / "d.jsonl", ROWS), tokenizer))


ENDINGS = ["ndjson", "txt", "jsonl.gz", "jsonl.zst", "json", "json.gz", "parquet", "arrow"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_form_gives_the_tokens_that_jsonl_gives(ending, tokenizer, plain, tmp_path) -> None:
    data = prepared(write(tmp_path / f"d.{ending}", ROWS), tokenizer)
    assert len(plain) == 42
    assert tokens(data) == plain


def test_a_json_file_of_lines_is_read_as_lines(tokenizer, plain, tmp_path) -> None:
    write(tmp_path / "d.jsonl", ROWS).rename(tmp_path / "d.json")
    assert tokens(prepared(tmp_path / "d.json", tokenizer)) == plain


def test_what_datasets_saves_to_disk_is_read(tokenizer, plain, tmp_path) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=2)
    assert (tmp_path / "saved" / "state.json").exists()
    assert tokens(prepared(tmp_path / "saved", tokenizer)) == plain


def test_a_folders_files_are_read_by_name_and_other_files_passed_over(tokenizer, plain, tmp_path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "b.jsonl.gz", ROWS[12:20])
    write(folder / "a.parquet", ROWS[:12])
    write(folder / "c.json", ROWS[20:])
    (folder / "README.md").write_text("# Chats")
    (folder / ".c.jsonl").write_text("broken")
    assert tokens(prepared(folder, tokenizer)) == plain


def test_several_processes_share_a_folders_rows_and_give_what_one_gives(
    tokenizer, plain, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(open_tokens, "_BYTES_A_WORKER", 500)
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.parquet", ROWS[:20], row_group_size=3)
    write(folder / "b.jsonl", [*ROWS[20:30], {"messages": 3}, *ROWS[30:]])
    data = prepared(folder, tokenizer, workers=2, budget=1)
    assert tokens(data) == plain
    assert data.receipt.first_bad_lines == [f"{folder}/b.jsonl:11: messages: is a number; write a list of messages"]


@pytest.mark.parametrize(
    ("ending", "place"),
    [("jsonl", ":4"), ("jsonl.gz", ":4"), ("json", ": row 4"), ("parquet", ": row 4"), ("arrow", ": row 4")],
)
def test_a_bad_row_is_told_with_its_file_and_line_or_number(ending, place, tokenizer, tmp_path) -> None:
    bad = {"messages": [{"role": "robot", "content": "a"}]}
    path = write(tmp_path / f"d.{ending}", [*ROWS[:3], bad, *ROWS[3:9]], row_group_size=2)
    with pytest.raises(JobFailure) as failure:
        prepared(path, tokenizer)
    assert failure.value.reason is Reason.INVALID_DATA
    assert failure.value.message == (
        f"{path}{place}: messages[0].role: 'robot' is not known; use one of system, developer, user, assistant, tool"
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.json", b'[{"text": "a"},\n {"text" 3}]', "broken JSON, Expecting ':' delimiter at line 2 column 10; write"),
        ("d.json", b'[{"text": "\xff"}]', "byte 12 is not UTF-8; save the file as UTF-8"),
        ("d.json", b"[]", "no row in it; give it some"),
        ("d.parquet", b"PAR1 torn", "is damaged, or not what its ending says ("),
        ("d.parquet.gz", gzip.compress(b"PAR1", mtime=0), "Parquet is compressed by itself; unpack the file around it"),
        ("d.arrow", b"\xff" * 90, "is damaged, or not what its ending says ("),
        ("d.jsonl.gz", b'{"text": "a"}\n', "is damaged, or not what its ending says ("),
        (
            "d.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:-9],
            "is damaged, or not what its ending says (",
        ),
        ("d.jsonl", b"", "the file is empty; write one row a line"),
    ],
)
@pytest.mark.parametrize("budget", [0, 9])
def test_a_broken_file_is_bad_data_whatever_the_budget(name, content, said, budget, tokenizer, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobFailure) as failure:
        prepared(tmp_path / name, tokenizer, budget=budget)
    assert failure.value.reason is Reason.INVALID_DATA
    assert failure.value.message.startswith(f"{tmp_path / name}: {said}")


def test_files_in_a_folders_folders_are_read_too_by_their_paths_but_nothing_hidden(tokenizer, plain, tmp_path) -> None:
    folder = tmp_path / "folder"
    for name in ("a/deep", "b", ".git/b"):
        (folder / name).mkdir(parents=True)
    write(folder / "a/deep/z.jsonl", ROWS[:12])
    write(folder / "a/rows.parquet", ROWS[12:20])
    write(folder / "b/rows.jsonl", [*ROWS[20:], BAD])
    write(folder / ".git/b/rows.jsonl", [BAD] * 9)
    for _ in range(2):
        data = prepared(folder, tokenizer, budget=1)
        assert tokens(data) == plain
        assert data.receipt.first_bad_lines == [f"{folder}/b/rows.jsonl:23: {ROBOT}"]
    (folder / "b").rename(folder / "c")
    assert prepared(folder, tokenizer, budget=1).digest != data.digest


def test_splits_that_datasets_has_saved_side_by_side_are_not_mixed(tokenizer, plain, tmp_path) -> None:
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(JobFailure) as failure:
        prepared(tmp_path / "saved", tokenizer)
    assert failure.value.message == (
        f"{tmp_path}/saved: its folders are splits of a dataset, test, train; name one of them"
    )
    assert tokens(prepared(tmp_path / "saved/train", tokenizer)) == plain


def test_a_folder_for_training_beside_one_that_is_held_out_is_not_mixed_with_it(tokenizer, plain, tmp_path) -> None:
    for name in ("train", "validation", "docs"):
        (tmp_path / "data" / name).mkdir(parents=True)
        write(tmp_path / "data" / name / "rows.jsonl", ROWS)
    with pytest.raises(JobFailure) as failure:
        prepared(tmp_path / "data", tokenizer)
    assert failure.value.message == (
        f"{tmp_path}/data: its folders are splits of a dataset, docs, train, validation; name one of them"
    )
    assert tokens(prepared(tmp_path / "data/train", tokenizer)) == plain


def test_what_is_hidden_is_no_split_and_an_object_with_the_name_of_a_folder_no_file() -> None:
    """As Amazon's console lists a folder that it has made; the tests' own store takes no such object."""
    listed = ["table.parquet", "table.parquet/1.parquet", ".git/train/1.jsonl", ".git/test/1.jsonl", "b.jsonl"]
    found = files_of_folder([PurePosixPath(path) for path in listed], place="s3://bucket/data")
    assert [str(path) for path in found] == ["b.jsonl", "table.parquet/1.parquet"]


def test_a_folder_without_data_is_refused(tokenizer, tmp_path) -> None:
    (tmp_path / "d/train").mkdir(parents=True)
    (tmp_path / "d/train/rows.csv").write_text("a,b")
    with pytest.raises(JobFailure, match=r"no file in it ends in \.jsonl, .*; name a file or folder"):
        prepared(tmp_path / "d", tokenizer)


def test_each_file_of_a_folder_counts_for_the_caches_key(tokenizer, tmp_path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.jsonl", ROWS[:3])
    write(folder / "b.jsonl", ROWS[3:6])
    digest = prepared(folder, tokenizer).digest
    assert prepared(folder, tokenizer).digest == digest
    write(folder / "b.jsonl", ROWS[3:7])
    changed = prepared(folder, tokenizer)
    assert changed.digest != digest
    write(folder / "c.json", ROWS[7:9])
    assert prepared(folder, tokenizer).receipt.samples == changed.receipt.samples + 2


def test_one_line_of_messages_is_a_row_in_jsonl_and_an_array_of_rows_in_json(tokenizer, tmp_path) -> None:
    content = json.dumps(pair("a", "b")) + "\n"
    (tmp_path / "d.jsonl").write_text(content)
    assert prepared(tmp_path / "d.jsonl", tokenizer).receipt.samples == 1
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(JobFailure, match=r"d.json: row 1: \(line\): has the fields 'role', 'content', of no known"):
        prepared(tmp_path / "d.json", tokenizer)


BAD = {"messages": [{"role": "robot", "content": "a"}]}
ROBOT = "messages[0].role: 'robot' is not known; use one of system, developer, user, assistant, tool"


def test_bad_rows_within_the_budget_are_skipped_and_told_again_from_the_cache(tokenizer, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", [BAD, ROWS[0], BAD, ROWS[2], *[BAD] * 30])
    for _ in range(2):
        data = prepared(path, tokenizer, budget=32)
        receipt = data.receipt
        assert (receipt.samples, receipt.dropped, receipt.bad_lines) == (2, 0, 32)
        assert receipt.first_bad_lines == [f"{path}:{line}: {ROBOT}" for line in (1, 3, *range(5, 23))]
    (tmp_path / "cache" / "moved").mkdir()
    moved = path.rename(tmp_path / "moved.jsonl")
    assert prepared(moved, tokenizer, budget=32).receipt.first_bad_lines[0] == f"{moved}:1: {ROBOT}"


def test_a_cache_made_under_a_larger_budget_is_refused_under_a_smaller_one(tokenizer, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", [ROWS[0], BAD, BAD])
    prepared(path, tokenizer, budget=2)
    for budget in (2, 1, 0):
        if budget == 2:
            prepared(path, tokenizer, budget=budget)
            continue
        with pytest.raises(JobFailure) as failure:
            prepared(path, tokenizer, budget=budget)
        assert failure.value.message.endswith(f"{path}:2: {ROBOT}\n{path}:3: {ROBOT}")
    assert failure.value.reason is Reason.INVALID_DATA


def test_the_budget_is_one_for_all_datasets_those_of_the_evaluation_too(tokenizer, tmp_path) -> None:
    names = ("first", "second", "third")
    # What is evaluated is not trained on.
    rows = [ROWS[:3], ROWS[:3], ROWS[3:6]]
    paths = [write_chats(tmp_path / f"{name}.jsonl", [*own, BAD]) for name, own in zip(names, rows, strict=True)]

    def run(budget: int) -> PreparedData:
        first, second, third = (
            {"dataset": DatasetConfig(name=name, anno_path=path)} for name, path in zip(names, paths, strict=True)
        )
        config = DataloaderConfig(
            dataset_config_list=[first, second],
            evaluation={"dataset_config_list": [third]},
            bad_line_budget=budget,
        )
        return prepare_data(config, tokenizer_path=tokenizer, cache_dir=tmp_path / "cache", seed=1)

    with pytest.raises(JobFailure) as failure:
        run(2)
    told = [f"{path}:4: {ROBOT}" for path in paths]
    assert failure.value.message.splitlines() == [
        "3 bad rows, where spec.data.badLineBudget lets 2 be skipped; correct them, or raise it. The first 3:",
        *told,
    ]
    receipt = run(3).receipt
    assert (receipt.bad_lines, receipt.first_bad_lines) == (3, told)
    assert [(each.name, each.samples, each.held_out, each.bad_lines) for each in receipt.datasets] == [
        ("first", 3, 0, 1),
        ("second", 3, 0, 1),
        ("third", 0, 3, 1),
    ]
    assert (receipt.samples, receipt.held_out) == (6, 3)


def test_a_runs_start_tells_counts_bad_rows_and_three_samples_with_their_marks(tokenizer, tmp_path, caplog) -> None:
    path = write_chats(tmp_path / "d.jsonl", [{"messages": pair("Hi", "Hello " + "you " * 400)}, BAD, *ROWS[1:]])
    data = prepared(path, tokenizer, budget=1)
    with caplog.at_level("INFO"):
        log_receipt(data)
        log_samples(data, tokenizer_path=tokenizer)
    counts, bad, first, second, third = caplog.messages
    assert re.fullmatch(
        r"data \(messages\): 42 samples, [\d,]+ tokens, [\d,]+ of them trained; 0 truncated, 0 dropped, "
        r"1 bad row skipped; .*",
        counts,
    )
    assert bad == f"  skipped {path}:2: {ROBOT}"
    assert first.startswith(
        "sample 1; trained is what stands between ⟦ and ⟧\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦"
    )
    assert "characters…]" in first
    assert len(first) < 1000
    assert second.endswith("<|im_start|>assistant\n⟦<think>\n\n</think>\n\nHello there<|im_end|>⟧\n")
    assert third.startswith("sample 3; ")


def test_far_too_many_bad_rows_end_the_reading_early(tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sft_trainer.datasets.tokenize._HOPELESS", 100)
    path = write_chats(tmp_path / "d.jsonl", [ROWS[0], *[BAD] * 1000])
    with pytest.raises(JobFailure, match=r"more than 127 bad rows, where .* lets 5 be skipped; .*The first 20:"):
        prepared(path, tokenizer, budget=5)


def test_a_column_of_tools_that_says_null_as_text_has_none(tokenizer: str, tmp_path: Path) -> None:
    """As `json.dumps(None)` fills it where a row has no tools."""
    rows = [{"messages": pair("Hi", "Hello there")} for _ in range(3)]
    plain = prepared(write(tmp_path / "plain.parquet", rows), tokenizer)
    written = prepared(write(tmp_path / "null.parquet", [row | {"tools": json.dumps(None)} for row in rows]), tokenizer)
    assert written.receipt.bad_lines == 0
    assert tokens(written) == tokens(plain)
