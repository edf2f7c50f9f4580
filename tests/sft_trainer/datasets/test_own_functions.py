"""Tokenize functions of a user's own, and texts with the ends that a user wants."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from sft_trainer.datasets import (
    CachableTokenizeFunction,
    OpenaiTokenizeFunctionConfig,
    PretrainTokenizeFunctionConfig,
    open_tokens,
)
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig
from sft_trainer.datasets.prepare import PreparedData, prepare_data
from sftjob.failure import JobFailure, Reason
from tests.sft_trainer.datasets.chats import LLAMA3_TOKENS, trl_template, write_chats

ROWS = [{"q": "two and two", "a": "four"}, {"q": "one and one", "a": "two"}]


class Answers(CachableTokenizeFunction):
    """Question and answer, of which the answer is trained."""

    def __init__(self, tokenizer: Any, mark: str, calls: list[str]) -> None:
        super().__init__(tokenizer)
        self._mark, self._calls = mark, calls

    def __call__(self, item: Any) -> dict[str, Any]:
        self._calls.append(item["q"])
        asked, said = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (item["q"] + self._mark, item["a"])
        )
        return {"input_ids": asked + said, "labels": [-100] * len(asked) + said, "num_tokens": len(asked + said)}

    def hash(self) -> str:
        return self._mark


class AnswersConfig:
    def __init__(self, mark: str = "?") -> None:
        self.mark = mark
        self.calls: list[str] = []

    def build(self, tokenizer: Any) -> Answers:
        return Answers(tokenizer, self.mark, self.calls)


class Fixed:
    """Whatever the row, this."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def build(self, _: Any) -> "Fixed":
        return self

    def __call__(self, _: Any) -> Any:
        return self.made

    def hash(self) -> str:
        return str(self.made)


@pytest.fixture(scope="module")
def folder(make_tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    make_tokenizer(trl_template("llama3.jinja"), tokens=LLAMA3_TOKENS, vocab_size=260, **special).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture
def prepared(folder: str, tmp_path: Path) -> Callable[..., PreparedData]:
    def run(rows: list[Any], tokenize_fn: Any, *, row_format: str = "auto", **options: Any) -> PreparedData:
        path = write_chats(tmp_path / "d.jsonl", rows)
        dataset = DatasetConfig(name="d", anno_path=path, format=row_format)
        config = DataloaderConfig(
            dataset_config_list=[{"dataset": dataset, "tokenize_fn": tokenize_fn}], num_workers=4, **options
        )
        return prepare_data(config, tokenizer_path=folder, cache_dir=tmp_path / "cache", seed=1)

    return run


def shown(data: PreparedData, folder: str) -> list[tuple[str, str]]:
    """Each sample's text, and what is trained of it."""
    decode = AutoTokenizer.from_pretrained(folder).decode
    samples = [data.sample(sample) for sample in range(data.receipt.samples)]
    return [(decode(ids.tolist()), decode(ids[trained].tolist())) for ids, trained in samples]


def test_a_function_of_ones_own_makes_the_tokens_and_is_not_asked_again(prepared, folder, monkeypatch) -> None:
    monkeypatch.setattr(open_tokens, "_BYTES_A_WORKER", 10)
    config = AnswersConfig()
    data = prepared(ROWS, config)
    assert shown(data, folder) == [("two and two?four", "four"), ("one and one?two", "two")]
    assert config.calls == ["two and two", "one and one"]
    assert [each.format for each in data.receipt.datasets] == ["own"]
    assert prepared(ROWS, config).digest == data.digest
    assert len(config.calls) == 2


def test_its_hash_decides_whether_the_cache_is_the_same(prepared, folder) -> None:
    first, second = prepared(ROWS, AnswersConfig("?")), prepared(ROWS, AnswersConfig("!"))
    assert shown(second, folder)[0] == ("two and two!four", "four")
    assert first.digest != second.digest


def test_a_row_that_it_stumbles_over_is_a_bad_row_with_its_place(prepared, folder, tmp_path) -> None:
    rows = [ROWS[0], {"q": "who?"}, ROWS[1]]
    with pytest.raises(JobFailure) as failure:
        prepared(rows, AnswersConfig())
    assert failure.value.reason is Reason.INVALID_DATA
    assert failure.value.message == (
        f"{tmp_path}/d.jsonl:2: (line): Answers raises KeyError: 'a'; correct the row, or it"
    )
    data = prepared(rows, AnswersConfig(), bad_line_budget=1)
    assert len(shown(data, folder)) == 2


def test_what_is_too_long_is_cut_or_told_as_of_any_dataset(prepared, folder) -> None:
    long = [{"q": "b", "a": "c" * 50}]
    data = prepared(long, AnswersConfig(), pack_max_length=8)
    ((text, trained),) = shown(data, folder)
    assert (text[:2], trained, data.receipt.truncated) == ("b?", text[2:], 1)
    with pytest.raises(JobFailure, match=r"d.jsonl:1: \(line\): \d+ tokens, at most 8 fit; shorten it"):
        prepared(long, AnswersConfig(), pack_max_length=8, overlong="error")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([1, 2], "tokenize_fn: Fixed gives no input_ids; return a dict of input_ids and labels"),
        ({"input_ids": [1]}, "tokenize_fn: Fixed gives no labels; return a dict"),
        (
            {"input_ids": [1, 2], "labels": [2]},
            "tokenize_fn: Fixed gives input_ids, labels and num_tokens of (2,), (1,)",
        ),
        (
            {"input_ids": [1, 2], "labels": [-100, 2], "num_tokens": 3},
            "tokenize_fn: Fixed gives input_ids, labels and num_tokens of (2,), (2,) and 3; they must be of one length",
        ),
        ({"input_ids": [1, -2], "labels": [-100, -2]}, "tokenize_fn: Fixed gives input_ids that are no tokens"),
        (
            {"input_ids": [1, 2, 3], "labels": [2, 3, -100]},
            "tokenize_fn: Fixed gives labels that are not the tokens at",
        ),
    ],
)
def test_answers_that_are_none_end_the_run_whatever_the_budget(prepared, made, said) -> None:
    with pytest.raises(JobFailure) as failure:
        prepared(ROWS, Fixed(made), bad_line_budget=9)
    assert failure.value.reason is Reason.INVALID_CONFIGURATION
    assert failure.value.message.startswith(said)


def test_a_row_of_which_nothing_is_trained_is_a_bad_one(prepared) -> None:
    with pytest.raises(JobFailure, match=r"d.jsonl:1: \(line\): Fixed trains no token of it"):
        prepared(ROWS, Fixed({"input_ids": [5, 6], "labels": [5, -100]}))


def test_a_function_without_a_hash_is_refused(prepared) -> None:
    class Nameless:
        def build(self, _: Any) -> Callable[[Any], Any]:
            return lambda row: row

    with pytest.raises(JobFailure, match=r"tokenize_fn: function has no hash\(\), under which"):
        prepared(ROWS, Nameless())


@pytest.mark.parametrize(
    ("tokenize_fn", "said"),
    [
        (AnswersConfig(), "'alpaca', but a tokenize_fn of one's own reads rows itself"),
        (PretrainTokenizeFunctionConfig(), "'alpaca', where tokenize_fn is of texts"),
    ],
)
def test_a_format_beside_a_function_that_has_its_own_is_refused(prepared, tokenize_fn, said) -> None:
    with pytest.raises(ValidationError, match=said):
        prepared(ROWS, tokenize_fn, row_format="alpaca")


@pytest.mark.parametrize(
    ("options", "text", "trained"),
    [
        ({}, "once<|eot_id|>", "nce<|eot_id|>"),
        ({"add_eos_token": False}, "once", "nce"),
        ({"add_bos_token": True}, "<|begin_of_text|>once<|eot_id|>", "once<|eot_id|>"),
        ({"add_bos_token": True, "max_length": 3}, "<|begin_of_text|>on", "on"),
    ],
)
def test_texts_have_the_ends_that_are_asked_for(prepared, folder, options, text, trained) -> None:
    assert shown(prepared([{"text": "once"}], PretrainTokenizeFunctionConfig(**options)), folder) == [(text, trained)]


@pytest.mark.parametrize(
    ("text", "options"), [("o", {"add_eos_token": False}), ("", {"add_eos_token": False}), ("", {})]
)
def test_a_text_of_which_nothing_would_be_trained_is_a_bad_line(prepared, text, options) -> None:
    with pytest.raises(JobFailure, match=r"d.jsonl:2: text: no token of it would be trained; it needs one behind"):
        prepared([{"text": "once"}, {"text": text}], PretrainTokenizeFunctionConfig(**options))


def test_the_ends_of_texts_count_for_the_cache_and_rows_of_another_form_are_told(prepared) -> None:
    rows = [{"text": "once"}]
    ways = (PretrainTokenizeFunctionConfig(), PretrainTokenizeFunctionConfig(add_bos_token=True), {})
    assert len({prepared(rows, way).digest for way in ways}) == 3
    assert prepared(rows, OpenaiTokenizeFunctionConfig()).receipt.datasets[0].format == "text"
    with pytest.raises(JobFailure, match=r"d.jsonl:1: text: missing; write an object with `text`"):
        prepared([{"content": "once"}], PretrainTokenizeFunctionConfig())
