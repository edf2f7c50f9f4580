"""Prepared data for people: the receipt in words, and samples with what is trained of them.

Called at the start of a run, by the prepare stage or by `Trainer.fit`, and by `sft_trainer.inspect_data`.
"""

import itertools
import logging
import sys

from transformers import PreTrainedTokenizerBase

from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.datasets.render import load_tokenizer
from sftjob.inspection import Piece, marked

_SAMPLES = 3
_MOST_CHARACTERS = 600
"""Of a piece: what is in the middle of a longer one is left out of a log."""

log = logging.getLogger(__name__)


def log_receipt(data: PreparedData) -> None:
    first, *others = data.receipt.in_words()
    log.info("%s: %s", data.receipt.title, first)
    for line in others:
        log.info("%s", line)


def log_samples(data: PreparedData, *, tokenizer_path: str) -> None:
    """Three at most: the first of each dataset, then the second."""
    tokenizer = load_tokenizer(tokenizer_path)
    has_colours = sys.stdout.isatty()
    marks = ("\x1b[1;32m", "\x1b[0m") if has_colours else ("⟦", "⟧")
    for number, sample in enumerate(_first_samples(data), start=1):
        shown = [piece.model_copy(update={"text": _shortened(piece.text)}) for piece in pieces(data, tokenizer, sample)]
        where = "in green" if has_colours else "between ⟦ and ⟧"
        log.info("sample %d; trained is what stands %s\n%s", number, where, marked(shown, *marks))


def pieces(data: PreparedData, tokenizer: PreTrainedTokenizerBase, sample_id: int) -> list[Piece]:
    tokens, trained = data.sample(sample_id)
    runs = itertools.groupby(zip(tokens.tolist(), trained.tolist(), strict=True), key=lambda token: token[1])
    return [
        Piece(text=tokenizer.decode([token for token, _ in run], skip_special_tokens=False), is_trained=is_trained)
        for is_trained, run in runs
    ]


def _first_samples(data: PreparedData) -> list[int]:
    counts = [cache.meta.samples for cache in data.caches]
    rows = range(min(_SAMPLES, max(counts)))
    ids = [first + row for row in rows for first, count in zip(data.first_ids, counts, strict=True) if row < count]
    return ids[:_SAMPLES]


def _shortened(text: str) -> str:
    left_out = len(text) - _MOST_CHARACTERS
    if left_out <= 0:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]} […{left_out:,} characters…] {text[-half:]}"
