"""From configuration to packs: counts, limits, several files, several processes, and what is refused."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sft_trainer.datasets import prepare
from sft_trainer.datasets.build import _follow, _started
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig, OpenaiTokenizeFunctionConfig
from sft_trainer.datasets.prepare import PreparedData, prepare_data
from sft_trainer.datasets.tokenize import Limits
from sft_trainer.datasets.worker import Task
from sftjob.failure import JobFailure, Reason
from sftjob.outcome import DataReceipt
from tests.sft_trainer.datasets.chats import pair, write_chats


@pytest.fixture(scope="session")
def llama3_folder(llama3, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("llama3")
    llama3.save_pretrained(folder)
    return str(folder)


def config(*paths: Path, ratios: tuple[float, ...] = (), max_length: int | None = None, **options) -> DataloaderConfig:
    return DataloaderConfig(
        dataset_config_list=[
            {
                "dataset": DatasetConfig(name=path.stem, anno_path=path, sample_ratio=ratio),
                "tokenize_fn": OpenaiTokenizeFunctionConfig(max_length=max_length),
            }
            for path, ratio in zip(paths, ratios or (1.0,) * len(paths), strict=True)
        ],
        **options,
    )


@pytest.fixture
def prepared(llama3_folder, tmp_path):
    def run(configuration: DataloaderConfig, *, seed: int = 1, cache_dir=tmp_path / "cache", **options) -> PreparedData:
        return prepare_data(configuration, tokenizer_path=llama3_folder, cache_dir=cache_dir, seed=seed, **options)

    return run


LETTERS = [pair("a", "b"), pair("a", "b" * 50), pair("a" * 50, "b")]
# <|begin_of_text|> <|start_header_id|> user <|end_header_id|> \n\n a <|eot_id|> and
# <|start_header_id|> assistant <|end_header_id|> \n\n b <|eot_id|>: 7 + 6 tokens, of which 2 are trained.


def test_the_receipt_counts_samples_tokens_and_trained_tokens(prepared, tmp_path) -> None:
    data = prepared(config(write_chats(tmp_path / "d.jsonl", LETTERS), pack_max_length=128))
    assert data.receipt == DataReceipt(samples=3, tokens=137, trained_tokens=55, packs=2)
    assert sorted(data.packs.members.tolist()) == [0, 1, 2]
    assert [int(tokens.sum() > 0) for tokens, _ in map(data.sample, range(3))] == [1, 1, 1]
    assert [len(data.sample(sample)[0]) for sample in range(3)] == [13, 62, 62]
    assert [int(data.sample(sample)[1].sum()) for sample in range(3)] == [2, 51, 2]
    assert sorted(zip(data.pack_tokens.tolist(), data.pack_trained.tolist(), strict=True)) == [(13, 2), (124, 53)]


def test_an_overlong_sample_is_cut_or_dropped_if_nothing_trained_is_left_and_both_are_counted(
    prepared, tmp_path
) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    data = prepared(config(path, pack_max_length=20))
    assert data.receipt == DataReceipt(samples=2, tokens=33, trained_tokens=11, truncated=1, dropped=1, packs=2)
    assert prepared(config(path, pack_max_length=64, max_length=20)).receipt == DataReceipt(
        samples=2, tokens=33, trained_tokens=11, truncated=1, dropped=1, packs=1
    )


def test_overlong_drop_keeps_whole_samples_only(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    data = prepared(config(path, pack_max_length=20, overlong="drop"))
    assert data.receipt == DataReceipt(samples=1, tokens=13, trained_tokens=2, dropped=2, packs=1)


def test_overlong_error_names_the_lines_and_their_lengths(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    with pytest.raises(JobFailure) as failure:
        prepared(config(path, pack_max_length=20, overlong="error"))
    assert failure.value.reason is Reason.INVALID_DATA
    remedy = "62 tokens, at most 20 fit; shorten the chat, or set overlong to truncate or drop"
    assert failure.value.message == f"{path}:2: messages: {remedy}\n{path}:3: messages: {remedy}"


def test_a_file_of_which_nothing_is_left_is_refused_with_its_counts(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    with pytest.raises(JobFailure, match="of 3 chats 3 are dropped, longer than 8 tokens .*; nothing is left to train"):
        prepared(config(path, pack_max_length=8))


def test_the_first_ten_bad_lines_are_reported_together_and_nothing_is_cached(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", [pair("a", "b"), *[{"messages": [number]} for number in range(15)]])
    with pytest.raises(JobFailure) as failure:
        prepared(config(path))
    lines = failure.value.message.splitlines()
    remedy = "messages[0]: is a number; write an object with `role` and `content`"
    assert lines[:10] == [f"{path}:{line}: {remedy}" for line in range(2, 12)]
    assert lines[10:] == [f"{path}: there may be more; these are the first 10"]
    assert [entry.suffix for entry in (tmp_path / "cache").iterdir()] == [".lock"]


def test_blank_lines_alone_are_no_data(prepared, tmp_path) -> None:
    (tmp_path / "d.jsonl").write_text("\n \n")
    with pytest.raises(JobFailure, match="only blank lines; write one chat a line"):
        prepared(config(tmp_path / "d.jsonl"))


def test_a_ratio_draws_a_seeded_fraction_or_repeats_and_ids_count_through_all_files(prepared, tmp_path) -> None:
    first = write_chats(tmp_path / "first.jsonl", [pair("a", str(number)) for number in range(10)])
    second = write_chats(tmp_path / "second.jsonl", [pair("a", str(number)) for number in range(4)])
    data = prepared(config(first, second, ratios=(0.3, 2.5)))
    drawn = np.bincount(data.packs.members, minlength=14)
    assert sorted(drawn[:10].tolist()) == [0] * 7 + [1] * 3
    assert sorted(drawn[10:].tolist()) == [2, 2, 3, 3]
    assert data.receipt.samples == 13
    assert data.sample(10)[0].tolist() == data.sample(0)[0].tolist()
    others = [prepared(config(first, second, ratios=(0.3, 2.5)), seed=seed).packs.members for seed in range(2, 6)]
    assert len({tuple(sorted(members.tolist())) for members in others}) > 1


def test_the_digest_changes_with_data_ratio_packing_and_seed_alone(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    digest = prepared(config(path)).digest
    assert prepared(config(path, num_workers=4)).digest == digest
    changed = [
        prepared(config(path, ratios=(2.0,))).digest,
        prepared(config(path, pack_level="none")).digest,
        prepared(config(path, pack_max_length=64)).digest,
        prepared(config(path), seed=2).digest,
        prepared(config(write_chats(tmp_path / "e.jsonl", LETTERS[1:]))).digest,
    ]
    assert len({digest, *changed}) == 6


def test_a_datasets_own_cache_folder_wins(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    entry = {"dataset": {"name": "d", "anno_path": path, "cache_dir": tmp_path / "own"}, "tokenize_fn": {}}
    prepared(DataloaderConfig(dataset_config_list=[entry]))
    assert (tmp_path / "own").is_dir()
    assert not (tmp_path / "cache").exists()


def test_a_cache_folder_that_can_not_be_made_is_named(prepared, tmp_path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(JobFailure, match=f"{tmp_path / 'cache'}.*; name a cache folder that can be written") as failure:
        prepared(config(write_chats(tmp_path / "d.jsonl", LETTERS)))
    assert failure.value.reason is Reason.STORAGE_UNAVAILABLE


def test_a_missing_tokenizer_folder_is_named(tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    with pytest.raises(JobFailure, match="nowhere: there is no such folder; correct the tokenizer's path"):
        prepare_data(config(path), tokenizer_path="nowhere", cache_dir=tmp_path, seed=1)


def test_progress_is_told_in_rows_and_not_too_often(prepared, tmp_path, monkeypatch) -> None:
    path = write_chats(tmp_path / "d.jsonl", [pair("a", str(number)) for number in range(300)])
    told: list[str] = []
    prepared(config(path), on_detail=told.append)
    assert told[0] == "64 of 300 rows"
    assert len(told) < 3
    monkeypatch.setattr(prepare, "_SECONDS_BETWEEN_DETAILS", 0)
    told.clear()
    prepared(config(path, pack_max_length=99), on_detail=told.append)
    assert told == [f"{rows} of 300 rows" for rows in (64, 128, 192, 256, 300)]


def test_several_processes_give_what_one_gives_and_report_a_bad_line_of_any(prepared, tmp_path, monkeypatch) -> None:
    chats = [pair("a", str(number)) for number in range(100)]
    path, bad = write_chats(tmp_path / "d.jsonl", chats), write_chats(tmp_path / "bad.jsonl", [*chats, [1]])
    one = prepared(config(path))
    monkeypatch.setattr(prepare, "_BYTES_A_WORKER", 1000)
    several = prepared(config(path, num_workers=2), cache_dir=tmp_path / "other")
    assert several.receipt == one.receipt
    assert several.caches[0].tokens.tolist() == one.caches[0].tokens.tolist()
    assert several.caches[0].trained.tolist() == one.caches[0].trained.tolist()
    assert several.caches[0].offsets.tolist() == one.caches[0].offsets.tolist()
    with pytest.raises(JobFailure) as failure:
        prepared(config(bad, num_workers=2))
    assert failure.value.reason is Reason.INVALID_DATA
    assert failure.value.message == f"{bad}:101: messages[0]: is a number; write an object with `role` and `content`"


@pytest.fixture
def endless_task(llama3_folder, tmp_path) -> Task:
    """Reads a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    return Task(
        path=tmp_path / "pipe",
        start=0,
        end=1,
        first_line=7,
        tokenizer_path=llama3_folder,
        limits=Limits(max_length=8, overlong="drop"),
        folder=tmp_path,
        part=0,
    )


def test_a_killed_worker_is_a_failure_and_no_wait(endless_task) -> None:
    worker = _started(endless_task)
    worker.kill()
    with pytest.raises(JobFailure, match="from line 7 on was killed, most likely for lack of memory") as failure:
        _follow(worker, endless_task, lambda *_: None)
    assert failure.value.reason is Reason.OUT_OF_MEMORY


def test_a_worker_leaves_when_its_parent_is_killed(endless_task) -> None:
    script = (
        "import sys, time\n"
        "from sft_trainer.datasets.build import _started\n"
        "from sft_trainer.datasets.worker import Task\n"
        "print(_started(Task.from_json(sys.argv[1])).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, endless_task.to_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while _is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_running(worker)


def _is_running(pid: int) -> bool:
    """A zombie that nobody has waited for yet is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
