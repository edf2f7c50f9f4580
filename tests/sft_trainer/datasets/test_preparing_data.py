"""From configuration to packs: counts, limits, several files, several processes, and what is refused."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sft_trainer.datasets import build, known_files, open_tokens, prepare
from sft_trainer.datasets.batch import BatchStream
from sft_trainer.datasets.build import _follow, _started
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig, OpenaiTokenizeFunctionConfig
from sft_trainer.datasets.prepare import PreparedData, prepare_data
from sft_trainer.datasets.rows import Span
from sft_trainer.datasets.tokenize import Part, Reading
from sft_trainer.datasets.worker import Task, run_task, tokens_of
from sftjob.failure import JobFailure, Reason
from sftjob.receipt import DataReceipt
from tests.sft_trainer.datasets.chats import LLAMA3_TOKENS, pair, trl_template, write_chats


@pytest.fixture(scope="session")
def llama3_folder(make_tokenizer, tmp_path_factory) -> str:
    """Llama 3's template over single bytes, so that tokens can be counted by eye."""
    folder = tmp_path_factory.mktemp("llama3")
    tokenizer = make_tokenizer(
        trl_template("llama3.jinja"), tokens=LLAMA3_TOKENS, vocab_size=260, bos_token="<|begin_of_text|>"
    )
    tokenizer.save_pretrained(folder)
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


def summed(receipt: DataReceipt) -> DataReceipt:
    return receipt.model_copy(update={"datasets": []})


LETTERS = [pair("a", "b"), pair("a", "b" * 50), pair("a" * 50, "b")]
# <|begin_of_text|> <|start_header_id|> u s e r <|end_header_id|> \n \n a <|eot_id|>, then
# <|start_header_id|> a s s i s t a n t <|end_header_id|> \n \n b <|eot_id|>: 11 + 15 tokens, the last 2 trained.


def test_the_receipt_counts_samples_tokens_and_trained_tokens(prepared, tmp_path) -> None:
    data = prepared(config(write_chats(tmp_path / "d.jsonl", LETTERS), pack_max_length=101))
    assert summed(data.receipt) == DataReceipt(samples=3, tokens=176, trained_tokens=55, packs=2)
    assert sorted(data.packs.members.tolist()) == [0, 1, 2]
    assert [len(data.sample(sample)[0]) for sample in range(3)] == [26, 75, 75]
    assert [int(data.sample(sample)[1].sum()) for sample in range(3)] == [2, 51, 2]
    assert sorted(data.stored.tokens.tolist()) == [75, 101]
    assert data.stored.trained.sum() == 55


def test_an_overlong_sample_is_cut_or_dropped_if_nothing_trained_is_left_and_both_are_counted(
    prepared, tmp_path
) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    data = prepared(config(path, pack_max_length=40))
    assert summed(data.receipt) == DataReceipt(samples=2, tokens=66, trained_tokens=18, truncated=1, dropped=1, packs=2)
    # The dataset's own limit cuts alike, in packs that hold more.
    data = prepared(config(path, pack_max_length=66, max_length=40))
    assert summed(data.receipt) == DataReceipt(samples=2, tokens=66, trained_tokens=18, truncated=1, dropped=1, packs=1)


def test_overlong_drop_keeps_whole_samples_only(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    data = prepared(config(path, pack_max_length=40, overlong="drop"))
    assert summed(data.receipt) == DataReceipt(samples=1, tokens=26, trained_tokens=2, dropped=2, packs=1)


@pytest.mark.parametrize("level", ["soft", "none", "hard"])
def test_overlong_split_trains_every_token_in_pieces_of_the_datasets_limit(level, prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    data = prepared(config(path, pack_max_length=40, overlong="split", pack_level=level))
    # 26, 40 + 35 and 40 + 35 tokens; as one text, 176 of them fill four packs of 40 and 16 more.
    assert summed(data.receipt) == DataReceipt(
        samples=3, tokens=176, trained_tokens=55, cut_by_packs=data.receipt.cut_by_packs, packs=5
    )
    assert data.receipt.cut_by_packs == {"soft": 2, "none": 2}.get(level, data.receipt.cut_by_packs)
    assert data.stored.trained.sum() == 55
    pieces = sorted(piece for pack in range(len(data.packs)) for piece in data.packs.pieces(pack))
    assert max(length for _, _, length in pieces) <= 40
    ends = {0: 0, 1: 0, 2: 0}
    for sample, begin, length in pieces:
        assert begin == ends[sample]
        ends[sample] += length
    assert ends == {0: 26, 1: 75, 2: 75}

    # The dataset's own limit cuts, in packs that hold more.
    data = prepared(config(path, pack_max_length=66, max_length=40, overlong="split", pack_level=level))
    assert data.receipt.trained_tokens == data.stored.trained.sum() == 55
    assert max(length for pack in range(len(data.packs)) for _, _, length in data.packs.pieces(pack)) <= 40


def test_overlong_error_names_the_lines_and_their_lengths(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    with pytest.raises(JobFailure) as failure:
        prepared(config(path, pack_max_length=40, overlong="error"))
    assert failure.value.reason is Reason.INVALID_DATA
    remedy = "75 tokens, at most 40 fit; shorten it, or set overlong to truncate, drop or split"
    assert failure.value.message == f"{path}:2: messages: {remedy}\n{path}:3: messages: {remedy}"


def test_a_file_of_which_nothing_is_left_is_refused_with_its_counts(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    with pytest.raises(
        JobFailure, match=r"of 3 rows 0 can't be used, 3 are dropped, longer than 8 tokens .*; nothing is left"
    ):
        prepared(config(path, pack_max_length=8))


def test_an_evaluation_of_which_nothing_is_left_is_refused_as_one(prepared, tmp_path) -> None:
    path, held = (
        write_chats(tmp_path / f"{name}.jsonl", chats) for name, chats in (("d", LETTERS[:1]), ("e", LETTERS[1:]))
    )
    evaluation = {"dataset_config_list": [{"dataset": DatasetConfig(name="e", anno_path=held)}]}
    words = (
        rf"{held}: of 2 rows .*; nothing is left to evaluate, give evaluation other datasets, or raise pack_max_length"
    )
    with pytest.raises(JobFailure, match=words):
        prepared(config(path, pack_max_length=26, overlong="drop", evaluation=evaluation))


BAD_ROW = "messages[0]: is a number; write an object with `role` and `content`"


def test_the_first_twenty_bad_rows_are_told_together_with_their_number_and_nothing_is_cached(
    prepared, tmp_path
) -> None:
    path = write_chats(tmp_path / "d.jsonl", [pair("a", "b"), *[{"messages": [number]} for number in range(1500)]])
    with pytest.raises(JobFailure) as failure:
        prepared(config(path))
    assert failure.value.reason is Reason.INVALID_DATA
    lines = failure.value.message.splitlines()
    assert lines[0] == (
        "1,500 bad rows, where spec.data.badLineBudget lets 0 be skipped; correct them, or raise it. The first 20:"
    )
    assert lines[1:] == [f"{path}:{line}: {BAD_ROW}" for line in range(2, 22)]
    assert [entry.suffix for entry in (tmp_path / "cache").iterdir()] == [".lock"]


def test_blank_lines_alone_are_no_data(prepared, tmp_path) -> None:
    (tmp_path / "d.jsonl").write_text("\n \n")
    with pytest.raises(JobFailure, match="no row in it; give it some"):
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
        prepared(config(path, pack_level="hard")).digest,
        prepared(config(path, pack_max_length=64)).digest,
        prepared(config(path), seed=2).digest,
        prepared(config(write_chats(tmp_path / "e.jsonl", LETTERS[1:]))).digest,
    ]
    assert len({digest, *changed}) == 7


def test_hard_packs_lose_no_trained_token_and_cuts_are_counted(prepared, tmp_path) -> None:
    data = prepared(config(write_chats(tmp_path / "d.jsonl", LETTERS), pack_level="hard", pack_max_length=80))
    # 176 tokens: 80 and 80 and 16, with two cuts, neither between samples.
    assert summed(data.receipt) == DataReceipt(samples=3, tokens=176, trained_tokens=55, packs=3, cut_by_packs=2)
    assert sorted(data.stored.tokens.tolist()) == [16, 80, 80]
    assert data.stored.trained.sum() == 55
    stream = BatchStream(data, seed=1, global_batch_size=1, world_size=1, rank=0)
    for step in (1, 2, 3):
        [batch] = stream.micro_batches(step)
        assert int((batch.labels != -100).sum()) == stream.trained_tokens(step)


def test_packs_are_made_once_and_torn_ones_again(prepared, tmp_path, monkeypatch) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    made = prepared(config(path))
    monkeypatch.setattr(prepare, "pack_samples", None)
    again = prepared(config(path))
    assert again.packs.members.tolist() == made.packs.members.tolist()
    assert again.stored.attention.tolist() == made.stored.attention.tolist() == [26**2 + 75**2 + 75**2]
    assert (again.receipt, again.digest) == (made.receipt, made.digest)
    [pieces] = (tmp_path / "cache").glob("packs-*/pieces.npy")
    pieces.write_bytes(pieces.read_bytes()[:-1])
    monkeypatch.undo()
    assert prepared(config(path)).packs.members.tolist() == made.packs.members.tolist()


@pytest.fixture
def old_chats(tmp_path, monkeypatch) -> Path:
    """A file that counts as quiet as soon as it is written."""
    monkeypatch.setattr(known_files, "_QUIET_SECONDS", -60)
    return write_chats(tmp_path / "d.jsonl", LETTERS)


def test_a_file_that_has_not_changed_is_not_read_again(prepared, old_chats, monkeypatch) -> None:
    made = prepared(config(old_chats))
    monkeypatch.setattr(open_tokens, "scan", None)
    assert prepared(config(old_chats)).digest == made.digest


def test_a_known_file_is_read_where_its_tokens_are_gone(prepared, old_chats, tmp_path) -> None:
    made = prepared(config(old_chats))
    for folder in (tmp_path / "cache").glob("tokens-*/"):
        shutil.rmtree(folder)
    assert prepared(config(old_chats)).caches[0].tokens.tolist() == made.caches[0].tokens.tolist()


def test_a_changed_file_is_read_again_though_its_size_and_mtime_are_as_before(prepared, old_chats) -> None:
    digest, before = prepared(config(old_chats)).digest, old_chats.stat()
    old_chats.write_bytes(old_chats.read_bytes().replace(b"aaa", b"bbb"))
    os.utime(old_chats, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (old_chats.stat().st_size, old_chats.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert prepared(config(old_chats)).digest != digest


def test_a_file_that_was_written_just_now_is_not_believed_to_stay(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    os.utime(path, (2e9, 2e9))  # later than now: no pause of this process makes it old
    prepared(config(path))
    assert not list((tmp_path / "cache").glob("known-*"))


def test_a_datasets_own_cache_folder_wins(prepared, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", LETTERS)
    entry = {"dataset": {"name": "d", "anno_path": path, "cache_dir": tmp_path / "own"}, "tokenize_fn": {}}
    prepared(DataloaderConfig(dataset_config_list=[entry]))
    assert (tmp_path / "own").is_dir()
    assert [path.name[:6] for path in (tmp_path / "own").iterdir() if path.is_dir()] == ["tokens"]
    assert [path.name[:6] for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["packs-"]


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
    monkeypatch.setattr(open_tokens, "_SECONDS_BETWEEN_DETAILS", 1000)
    prepared(config(path), on_detail=told.append)
    assert told == ["64 of 300 rows"]
    monkeypatch.setattr(open_tokens, "_SECONDS_BETWEEN_DETAILS", 0)
    told.clear()
    prepared(config(path, pack_max_length=99), on_detail=told.append)
    assert told == [f"{rows} of 300 rows" for rows in (64, 128, 192, 256, 300)]


def test_several_processes_give_what_one_gives(prepared, tmp_path, monkeypatch) -> None:
    chats = [pair("a", str(number)) for number in range(100)]
    path = write_chats(tmp_path / "d.jsonl", chats)
    one = prepared(config(path))
    monkeypatch.setattr(open_tokens, "_BYTES_A_WORKER", 1000)
    several = prepared(config(path, num_workers=2), cache_dir=tmp_path / "other")
    assert several.receipt == one.receipt
    assert several.caches[0].tokens.tolist() == one.caches[0].tokens.tolist()
    assert several.caches[0].trained.tolist() == one.caches[0].trained.tolist()
    assert several.caches[0].offsets.tolist() == one.caches[0].offsets.tolist()


def test_a_bad_line_of_any_range_is_reported_under_its_own_number(prepared, tmp_path, monkeypatch) -> None:
    def one_after_the_other(tasks: list[Task], *, on_rows) -> list[Part]:
        assert len(tasks) == 3
        return [run_task(task, tokens_of=tokens_of(task), on_rows=on_rows) for task in tasks]

    monkeypatch.setattr(open_tokens, "_BYTES_A_WORKER", 1000)
    monkeypatch.setattr(build, "_in_processes", one_after_the_other)
    path = write_chats(tmp_path / "d.jsonl", [[1], *[pair("a", str(number)) for number in range(100)], [1]])
    with pytest.raises(JobFailure) as failure:
        prepared(config(path, num_workers=3))
    assert failure.value.message == f"{path}:1: {BAD_ROW}\n{path}:102: {BAD_ROW}"


@pytest.fixture
def endless_task(llama3_folder, tmp_path) -> Task:
    """Reads a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    return Task(
        spans=[Span(path=tmp_path / "pipe", form="jsonl", start=0, end=1, first=7, size=1)],
        tokenizer_path=llama3_folder,
        reading=Reading(row_format="messages", max_length=8, overlong="drop"),
        folder=tmp_path,
        part=0,
    )


def test_a_killed_worker_is_a_failure_and_no_wait(endless_task) -> None:
    worker = _started(endless_task)
    worker.kill()
    with pytest.raises(
        JobFailure, match="pipe:7: the process that tokenises from here on was killed, most likely"
    ) as failure:
        _follow(worker, endless_task, lambda *_: None)
    assert failure.value.reason is Reason.LOAD_OUT_OF_MEMORY


def test_a_worker_leaves_when_its_standard_input_ends_as_it_does_with_its_parent(endless_task) -> None:
    worker = _started(endless_task)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(60) == 1


@pytest.mark.parametrize(
    ("trained", "evaluated"),
    [("chats", "chats/a.jsonl"), ("chats", "link.jsonl"), ("chats/a.jsonl", "copy.jsonl"), ("chats", "other.jsonl")],
)
def test_what_is_trained_on_is_not_evaluated_as_if_it_were_held_out(
    trained: str, evaluated: str, prepared, tmp_path
) -> None:
    """Neither a file of the trained folder, nor a link to it, nor a copy."""
    (tmp_path / "chats").mkdir()
    file = write_chats(tmp_path / "chats/a.jsonl", LETTERS)
    (tmp_path / "link.jsonl").symlink_to(file)
    shutil.copy(file, tmp_path / "copy.jsonl")
    write_chats(tmp_path / "other.jsonl", LETTERS[:2])
    held = config(tmp_path / evaluated).dataset_config_list
    configuration = config(tmp_path / trained, evaluation={"dataset_config_list": held})
    if evaluated == "other.jsonl":
        assert prepared(configuration).receipt.held_out == 2
        return
    with pytest.raises(JobFailure) as caught:
        prepared(configuration)
    assert caught.value.reason is Reason.INVALID_CONFIGURATION
    why = "the content is the same" if evaluated == "copy.jsonl" else f"both read {file}"
    assert caught.value.message == (
        f"{tmp_path}/{evaluated}: is to be evaluated, but is trained on as {tmp_path}/{trained} ({why}); name another "
        "file, or hold out a part of the training data, with spec.data.evaluation.fraction"
    )
    # A file that both name is told before hours of tokenising.
    assert (tmp_path / "cache").exists() == (evaluated == "copy.jsonl")
