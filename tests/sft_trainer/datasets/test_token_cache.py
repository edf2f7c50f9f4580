"""The cache on disk: what its key covers, who builds it, and that nothing torn is believed."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from sft_trainer.datasets.cache import CacheKey, cache_folder, open_cache, open_or_build
from sft_trainer.datasets.fingerprint import tokenizer_fingerprint
from sft_trainer.datasets.rows import BadRow
from sft_trainer.datasets.tokenize import Part
from sft_trainer.datasets.tokens import TextEnds

BAD = BadRow(file="d.jsonl", place=":5", problem="text: is a number; write a string")
KEY = CacheKey(content="f", tokenizer={"tokenizer.json": "t"}, row_format="messages", max_length=8, overlong="drop")


def build_two_parts(folder: Path) -> list[Part]:
    """Samples [1 2 3] and [4], then [5 6]; of each the last token is trained, the second was cut."""
    for part, (tokens, trained, table) in enumerate(
        [([1, 2, 3, 4], [0, 0, 1, 1], [(3, 1, 0), (1, 1, 1)]), ([5, 6], [0, 1], [(2, 1, 0)])]
    ):
        np.array(tokens, dtype=np.uint32).tofile(folder / f"tokens-{part}.bin")
        np.array(trained, dtype=np.bool_).tofile(folder / f"trained-{part}.bin")
        np.save(folder / f"samples-{part}.npy", np.array(table, dtype=np.int32))
    return [
        Part(rows=3, samples=2, tokens=4, trained_tokens=2, largest_token=4, truncated=1, dropped=1),
        Part(rows=2, samples=1, tokens=2, trained_tokens=1, largest_token=6, bad_rows=1, told=[BAD]),
    ]


def build_nothing(_: Path) -> list[Part]:
    raise AssertionError("built again")


def opened(folder: Path, key: CacheKey = KEY, build=build_two_parts):
    return open_or_build(folder, key, build=build, on_wait=lambda: None)


def test_parts_become_one_folder_that_opens_without_being_built_again(tmp_path) -> None:
    opened(tmp_path / "cache")
    cache = opened(tmp_path / "cache", build=build_nothing)
    assert cache.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert cache.trained.tolist() == [False, False, True, True, False, True]
    assert cache.offsets.tolist() == [0, 3, 4, 6]
    assert cache.trained_counts.tolist() == [1, 1, 1]
    assert cache.is_cut.tolist() == [0, 1, 0]
    assert isinstance(cache.tokens, np.memmap)
    meta = cache.meta
    assert (meta.rows, meta.samples, meta.tokens, meta.trained_tokens, meta.truncated, meta.dropped) == (
        5,
        3,
        6,
        3,
        1,
        1,
    )
    assert (meta.bad_rows, meta.told, meta.largest_token) == (1, [BAD], 6)
    names = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sorted(names) == ["meta.json", "offsets.npy", "samples.npy", "tokens.bin", "trained.bin"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"content": "g"},
        {"tokenizer": {"tokenizer.json": "u"}},
        {"tokenizer": {"tokenizer.json": "t", "config.json": "c"}},
        {"chat_template": "{{ messages }}"},
        {"row_format": "text"},
        {"max_length": 9},
        {"overlong": "error"},
        {"ends": TextEnds(begin=False, end=True)},
        {"function": "Answers:1"},
    ],
)
def test_each_input_changes_the_folder(change) -> None:
    assert cache_folder(Path("c"), KEY) != cache_folder(Path("c"), KEY.model_copy(update=change))


def test_a_key_without_newer_fields_is_the_one_that_older_caches_and_checkpoints_have() -> None:
    assert cache_folder(Path("c"), KEY) == Path("c/tokens-3307cb46354279580c82c996eb4c9fe6")


def test_the_tokenizers_fingerprint_changes_with_its_files_and_not_with_weights(tmp_path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"):
        (tmp_path / name).write_text("a")
    before = tokenizer_fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").write_text("b")
    assert tokenizer_fingerprint(str(tmp_path)) == before
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text("b")
        assert tokenizer_fingerprint(str(tmp_path)) != before
        (tmp_path / name).write_text("a")
    (tmp_path / "special_tokens_map.json").write_text("{}")
    assert tokenizer_fingerprint(str(tmp_path)) != before


@pytest.mark.parametrize("damaged", ["tokens.bin", "trained.bin", "offsets.npy", "samples.npy", "meta.json"])
@pytest.mark.parametrize("how", ["shorter", "missing"])
def test_a_damaged_folder_is_built_again(damaged, how, tmp_path) -> None:
    opened(tmp_path)
    file = cache_folder(tmp_path, KEY) / damaged
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert open_cache(file.parent, KEY) is None
    assert opened(tmp_path).tokens.tolist() == [1, 2, 3, 4, 5, 6]


def test_a_folder_of_an_older_version_is_built_again_under_the_same_key(tmp_path) -> None:
    opened(tmp_path)
    meta = cache_folder(tmp_path, KEY) / "meta.json"
    text = meta.read_text()
    meta.write_text(text.replace(' "largestToken": 6,\n', ""))
    assert len(meta.read_text()) < len(text)
    assert opened(tmp_path).meta.largest_token == 6
    assert meta.read_text() == text


def test_what_a_killed_builder_left_is_cleared_away(tmp_path) -> None:
    left = cache_folder(tmp_path, KEY).with_suffix(".tmp")
    left.mkdir()
    (left / "tokens-0.bin").write_bytes(b"torn")
    assert opened(tmp_path).tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert not left.exists()


def test_a_builder_that_fails_leaves_no_folder(tmp_path) -> None:
    with pytest.raises(AssertionError, match="built again"):
        opened(tmp_path, build=build_nothing)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def _build_in_a_process(folder: Path, results: Path, number: int) -> None:
    def build(temporary: Path) -> list[Part]:
        with (results / "builds").open("a") as log:
            log.write(f"{number}\n")
        parts = build_two_parts(temporary)
        time.sleep(0.3)
        return parts

    (results / f"tokens-{number}").write_text(str(opened(folder, build=build).tokens.tolist()))


def test_of_processes_that_come_at_once_one_builds_and_the_others_wait_for_it(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = [(tmp_path / "cache", tmp_path, number) for number in range(4)]
    processes = [context.Process(target=_build_in_a_process, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    assert [(tmp_path / f"tokens-{number}").read_text() for number in range(4)] == ["[1, 2, 3, 4, 5, 6]"] * 4
