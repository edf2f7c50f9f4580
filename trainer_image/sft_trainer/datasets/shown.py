"""Prepared data for people: the receipt in words, and samples with what is trained of them.

Called at the start of a run, by the prepare stage or by `Trainer.fit`, and by `sft_trainer.inspect_data`.
"""

import itertools
import logging
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.datasets.render import load_tokenizer
from sftjob import names
from sftjob.inspection import Piece, ShownSamples, marked

_SAMPLES = 3
_MOST_CHARACTERS = 600
"""Of a piece: what is in the middle of a longer one is left out of a log."""

log = logging.getLogger(__name__)


def log_receipt(data: PreparedData) -> None:
    first, *others = data.receipt.in_words()
    log.info("%s: %s", data.receipt.title, first)
    for line in others:
        log.info("%s", line)


def log_samples(data: PreparedData, *, tokenizer_path: str, scratch: Path | None = None) -> None:
    """Three at most: the first of each dataset, then the second. Into `scratch` too, where `sft run` finds them."""
    tokenizer = load_tokenizer(tokenizer_path)
    samples = [
        [piece.model_copy(update={"text": _shortened(piece.text)}) for piece in pieces(data, tokenizer, sample)]
        for sample in _first_samples(data)
    ]
    # Where log lines go.
    has_colours = sys.stderr.isatty()
    marks = ("\x1b[1;32m", "\x1b[0m") if has_colours else ("⟦", "⟧")
    for number, sample in enumerate(samples, start=1):
        where = "in green" if has_colours else "between ⟦ and ⟧"
        log.info("sample %d; trained is what stands %s\n%s", number, where, marked(sample, *marks))
    if scratch:
        (scratch / names.SAMPLES).write_text(ShownSamples(receipt=data.receipt, samples=samples).to_json())


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
