"""Turns rows into tokens and a flag for each: trained or not.

In: spans of files, and what makes tokens of rows: a `SampleTokenizer` with their format, or a function of a user's own.
Out: the tokens in files of a folder, and a `Part` with its counts and the bad rows. `build` calls it in its own
process, or through `worker` in several.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from sft_trainer.datasets.formats import field_of, sample_of
from sft_trainer.datasets.read import read_rows
from sft_trainer.datasets.rows import BadRow, Fault, Row, Span, Tokens
from sft_trainer.datasets.tokens import Sample, SampleTokenizer, TextEnds
from sft_trainer.datasets.values import Refused
from sftjob.base import Record
from sftjob.options import Overlong
from sftjob.receipt import MOST_TOLD

_HOPELESS = 10_000
"""Bad rows beyond the budget after which a part is given up: no one corrects so many by hand."""
_ROWS_AT_ONCE = 64

TokensOf = Callable[[list[Row | Fault]], Iterator[Tokens | Fault]]
"""Of a few rows, in their order."""


class Reading(Record):
    """Of one dataset."""

    row_format: str
    columns: dict[str, str] = {}
    ends: TextEnds | None = None
    """Of passages."""
    max_length: int
    overlong: Overlong
    budget: int = 0
    """Bad rows that may be skipped."""


class Part(Record):
    """What became of the rows of one process."""

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    largest_token: int = 0
    truncated: int = 0
    dropped: int = 0
    thoughtless: int = 0
    bad_rows: int = 0
    """Skipped."""
    told: list[BadRow] = []
    """The first of them."""
    missing_columns: list[str] = []
    """Which no row had, of those that were read."""
    is_given_up: bool = False
    """For far too many of them."""


def tokenize_range(
    spans: list[Span],
    *,
    tokens_of: TokensOf,
    reading: Reading,
    folder: Path,
    part: int,
    on_rows: Callable[[int], None],
) -> Part:
    """Writes `tokens-<part>.bin`, `trained-<part>.bin` and `samples-<part>.npy`; tells `on_rows` each few rows done."""
    told: list[BadRow] = []
    samples: list[tuple[int, int, bool]] = []
    rows = bad_rows = largest = thoughtless = 0
    is_given_up = False
    missing_columns, read_any = set(reading.columns.values()), False
    with (
        (folder / f"tokens-{part}.bin").open("wb") as tokens_file,
        (folder / f"trained-{part}.bin").open("wb") as flags_file,
    ):
        for span, batch in _in_batches(spans):
            for row in batch if missing_columns else ():
                if isinstance(row, Row) and isinstance(row.value, dict):
                    missing_columns -= row.value.keys()
                    read_any = True
            for row in tokens_of(batch):
                sample = row if isinstance(row, Fault) else _fitted(row, reading)
                if isinstance(sample, Fault):
                    bad_rows += 1
                    if len(told) < MOST_TOLD:
                        place = span.place(sample.line)
                        told.append(BadRow(file=str(span.path), place=place, problem=sample.problem))
                elif sample is not None:
                    thoughtless += row.thoughtless
                    ids, trained, cut = sample
                    tokens_file.write(ids.tobytes())
                    flags_file.write(trained.tobytes())
                    largest = max(largest, int(ids.max(initial=0)))
                    samples.append((len(ids), int(trained.sum()), cut))
            rows += len(batch)
            on_rows(rows)
            if bad_rows > reading.budget + _HOPELESS:
                is_given_up = True
                break
    table = np.array(samples, dtype=np.int32).reshape(-1, 3)
    np.save(folder / f"samples-{part}.npy", table)
    return Part(
        rows=rows,
        samples=len(samples),
        tokens=int(table[:, 0].sum(dtype=np.int64)),
        trained_tokens=int(table[:, 1].sum(dtype=np.int64)),
        largest_token=largest,
        truncated=int(table[:, 2].sum()),
        dropped=rows - len(samples) - bad_rows,
        thoughtless=thoughtless,
        bad_rows=bad_rows,
        told=told,
        missing_columns=sorted(missing_columns) if read_any else [],
        is_given_up=is_given_up,
    )


def by_format(tokenizer: SampleTokenizer, row_format: str, columns: Mapping[str, str]) -> TokensOf:
    return lambda rows: tokenizer.tokens([_sample(row, row_format, columns) for row in rows])


def _in_batches(spans: list[Span]) -> Iterator[tuple[Span, list[Row | Fault]]]:
    for span in spans:
        rows = read_rows(span)
        while batch := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            yield span, batch


def _sample(row: Row | Fault, row_format: str, columns: Mapping[str, str]) -> Sample | Fault:
    if isinstance(row, Fault):
        return row
    try:
        return Sample(row.line, sample_of(row.value, row_format, columns))
    except Refused as refused:
        return Fault(row.line, str(refused))


def _fitted(row: Tokens, reading: Reading) -> tuple[np.ndarray, np.ndarray, bool] | Fault | None:
    """The sample and whether it was cut; None where it is dropped."""
    ids, trained, most = row.ids, row.trained, reading.max_length
    if len(ids) <= most or reading.overlong == "split":
        return ids, trained, False  # whole: its pieces are packed, not tokenised
    if reading.overlong == "error":
        return Fault(
            row.line,
            f"{field_of(reading.row_format, reading.columns)}: {len(ids)} tokens, at most {most} fit; shorten it, "
            "or set overlong to truncate, drop or split",
        )
    if reading.overlong == "drop" or not trained[:most].any():
        return None
    return ids[:most], trained[:most], True
