"""What reading gives: a row, or what is wrong with one; the part of a file that one process reads; a row's tokens.

`read` and the readers of each form make rows, `tokens` and `own` make tokens of them, `tokenize` writes these.

T tokens of a sample.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sft_trainer.datasets.files import Form
from sftjob.base import Record


@dataclass(frozen=True)
class Row:
    line: int
    """Of a JSONL file; else the number of the row. From 1."""
    value: Any
    """As JSON has it."""


@dataclass(frozen=True)
class Fault:
    line: int
    problem: str
    """`<field>: <what>; <remedy>`"""


class Tokens(NamedTuple):
    line: int
    ids: np.ndarray
    """[T] uint32"""
    trained: np.ndarray
    """[T] bool"""
    thoughtless: int = 0
    """Answers that are trained without their thoughts, which the chat template leaves out."""


class Span(Record):
    """Whole rows of a file."""

    path: Path
    form: Form
    start: int = 0
    """Where it begins: a byte of a plain JSONL file, a row group of a Parquet file. The rest is read as a whole."""
    end: int = 0
    first: int = 1
    """Line or number of the first row."""
    size: int
    """Bytes in the file, about: what work is shared by."""

    def place(self, line: int) -> str:
        """Behind the file's path."""
        return f":{line}" if self.form == "jsonl" else f": row {line}"


class BadRow(Record):
    """A row that is not trained on, as the cache remembers it."""

    file: str
    """Its path; in a cache the one in the dataset's folder."""
    place: str
    """Behind the file's path."""
    problem: str
    """`<field>: <what>; <remedy>`"""

    def within(self, path: Path) -> "BadRow":
        """`path` is the dataset's: a file, or the folder of its files."""
        return self.model_copy(update={"file": Path(self.file).relative_to(path).as_posix()})

    def told(self, path: Path) -> str:
        """`path` is the dataset's, which may have moved since."""
        return f"{path / self.file if path.is_dir() else path}{self.place}: {self.problem}"
