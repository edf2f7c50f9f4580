"""Turns rows into tokens and a flag for each: trained or not.

In: a range of a file, the format of its rows, and a `SampleTokenizer`. Out: the range's files in a folder, and a `Part`
with its counts or the faults of its lines. `build` calls it in its own process, or through `worker` in several.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sft_trainer.datasets.formats import sample_of
from sft_trainer.datasets.read import Fault, LineRange, Row, read_rows
from sft_trainer.datasets.tokens import Sample, SampleTokenizer
from sft_trainer.datasets.values import Refused
from sftjob.base import Record
from sftjob.options import Overlong

MOST_FAULTS = 10
"""Faults after which a range is given up: enough to see what is wrong with a file."""
_ROWS_AT_ONCE = 64


class Reading(Record):
    """Of one file."""

    row_format: str
    max_length: int
    overlong: Overlong


class Part(Record):
    """What became of a range's rows. With faults the counts and files mean nothing."""

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    faults: list[tuple[int, str]] = []
    """Line and problem."""


def tokenize_range(
    path: Path,
    lines: LineRange,
    *,
    tokenizer: SampleTokenizer,
    reading: Reading,
    folder: Path,
    part: int,
    on_rows: Callable[[int], None],
) -> Part:
    """Writes `tokens-<part>.bin`, `trained-<part>.bin` and `samples-<part>.npy`; tells `on_rows` each few rows done."""
    faults: list[tuple[int, str]] = []
    samples: list[tuple[int, int, bool]] = []
    rows = 0
    with (
        (folder / f"tokens-{part}.bin").open("wb") as tokens_file,
        (folder / f"trained-{part}.bin").open("wb") as flags_file,
    ):
        for batch in _in_batches(read_rows(path, lines)):
            for row in tokenizer.tokens([_sample(row, reading.row_format) for row in batch]):
                sample = row if isinstance(row, Fault) else _fitted(*row, reading)
                if isinstance(sample, Fault):
                    faults.append((sample.line, sample.problem))
                elif sample is not None:
                    ids, trained, cut = sample
                    tokens_file.write(ids.tobytes())
                    flags_file.write(trained.tobytes())
                    samples.append((len(ids), int(trained.sum()), cut))
            rows += len(batch)
            on_rows(rows)
            if len(faults) >= MOST_FAULTS:
                break
    table = np.array(samples, dtype=np.int32).reshape(-1, 3)
    np.save(folder / f"samples-{part}.npy", table)
    return Part(
        rows=rows,
        samples=len(samples),
        tokens=int(table[:, 0].sum(dtype=np.int64)),
        trained_tokens=int(table[:, 1].sum(dtype=np.int64)),
        truncated=int(table[:, 2].sum()),
        dropped=rows - len(samples) - len(faults),
        faults=faults[:MOST_FAULTS],
    )


def _in_batches(rows: Iterator[Row | Fault]) -> Iterator[list[Row | Fault]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _sample(row: Row | Fault, row_format: str) -> Sample | Fault:
    if isinstance(row, Fault):
        return row
    try:
        return Sample(row.line, sample_of(row.value, row_format))
    except Refused as refused:
        return Fault(row.line, str(refused))


def _fitted(
    line: int, ids: np.ndarray, trained: np.ndarray, reading: Reading
) -> tuple[np.ndarray, np.ndarray, bool] | Fault | None:
    """The sample and whether it was cut; None where it is dropped."""
    most = reading.max_length
    if len(ids) <= most:
        return ids, trained, False
    if reading.overlong == "error":
        return Fault(
            line,
            f"messages: {len(ids)} tokens, at most {most} fit; shorten the chat, or set overlong to truncate or drop",
        )
    if reading.overlong == "drop" or not trained[:most].any():
        return None
    return ids[:most], trained[:most], True
