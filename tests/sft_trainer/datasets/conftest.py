"""Small real tokenizers with real chat templates, and chats tokenised by the production path."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sft_trainer.datasets.read import scan
from sft_trainer.datasets.tokenize import Part, Reading, by_format, tokenize_range
from sft_trainer.datasets.tokens import SampleTokenizer
from tests.sft_trainer.datasets.chats import CHATML_TOKENS, LLAMA3_TOKENS, trl_template, write_chats

TEXT = "user assistant system tool\n\nWhat is two plus two? Two plus two is four. Hello there, how are you? think\n" * 4


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A byte-level BPE of 330 tokens, as those of GPT-2, Llama 3 and Qwen are, with the template's own tokens."""

    def make(
        template: str | None, *, tokens: list[str], vocab_size: int = 330, **special: str
    ) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator([TEXT], trainer)
        # As Llama 3's: offsets leave leading spaces out, and a BOS goes before whatever is to get special tokens.
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
        if bos := special.get("bos_token"):
            begin = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))])
            backend.post_processor = processors.Sequence([backend.post_processor, begin])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def qwen3(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer(trl_template("qwen3.jinja"), tokens=CHATML_TOKENS, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def qwen2_5(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer(trl_template("qwen2_5.jinja"), tokens=CHATML_TOKENS, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def llama3(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """Pads with its end-of-turn token, as people set it where a model has no pad token."""
    return make_tokenizer(
        trl_template("llama3.jinja"),
        tokens=LLAMA3_TOKENS,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|eot_id|>",
    )


class Tokenized:
    """The result for a few chats, and how a person would check it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, folder: Path, part: Part) -> None:
        lengths = np.load(folder / "samples-0.npy")[:, 0]
        ids = np.fromfile(folder / "tokens-0.bin", dtype=np.uint32)
        trained = np.fromfile(folder / "trained-0.bin", dtype=np.bool_)
        cuts = np.cumsum(lengths)[:-1].astype(int)
        self.faults = [f"{row.place}: {row.problem}" for row in part.told]
        self.thoughtless = part.thoughtless
        self.ids = [piece.tolist() for piece in np.split(ids, cuts)]
        self.trained = [piece.tolist() for piece in np.split(trained, cuts)]
        self._tokenizer = tokenizer

    def text(self, sample: int = 0) -> str:
        return self._tokenizer.decode(self.ids[sample], clean_up_tokenization_spaces=False)

    def trained_pieces(self, sample: int = 0) -> list[str]:
        """The text of each run of trained tokens."""
        pieces: list[list[int]] = []
        before = False
        for token, is_trained in zip(self.ids[sample], self.trained[sample], strict=True):
            if is_trained and not before:
                pieces.append([])
            if is_trained:
                pieces[-1].append(token)
            before = is_trained
        return [self._tokenizer.decode(piece, clean_up_tokenization_spaces=False) for piece in pieces]


@pytest.fixture
def tokenize(tmp_path: Path) -> Callable[..., Tokenized]:
    def run(
        tokenizer: PreTrainedTokenizerFast,
        *chats: object,
        chat_template: str | None = None,
        max_length: int = 4096,
        overlong: str = "truncate",
        row_format: str = "messages",
    ) -> Tokenized:
        path = write_chats(tmp_path / "chats.jsonl", list(chats))
        part = tokenize_range(
            scan(path, workers=1).shares[0],
            tokens_of=by_format(SampleTokenizer(tokenizer, chat_template=chat_template), row_format, {}),
            reading=Reading(row_format=row_format, max_length=max_length, overlong=overlong),
            folder=tmp_path,
            part=0,
            on_rows=lambda _: None,
        )
        return Tokenized(tokenizer, tmp_path, part)

    return run
