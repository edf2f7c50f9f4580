"""Reads rows from a JSONL file.

In: a file of JSON values, one a line. Out: a `Row` a line, or a `Fault` that says what is wrong with it; nothing is
raised for a single line, so that several can be reported together. `prepare` calls `scan` to learn the file's digest
and ranges, `tokenize` reads a range.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_trainer.datasets.values import Refused
from sftjob.failure import JobFailure, Reason

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    line: int
    value: Any
    """As JSON has it."""


@dataclass(frozen=True)
class Fault:
    line: int
    problem: str
    """`<field>: <what>; <remedy>`"""


@dataclass(frozen=True)
class LineRange:
    """Whole lines of a file."""

    start: int
    """Byte at which the first line begins."""
    end: int
    first_line: int
    """Counted from 1."""


@dataclass(frozen=True)
class Scan:
    sha256: str
    lines: int
    ranges: list[LineRange]


def scan(path: Path, *, ranges: int) -> Scan:
    """One pass over the file: its digest, its number of lines, and ranges of about equal size.

    Raises JobFailure where there is no such file, or nothing in it.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            wanted = [size * part // ranges for part in range(1, ranges)]
            hashed, position, lines, starts, tail = hashlib.sha256(), 0, 0, [(0, 1)], b""
            while chunk := file.read(_CHUNK_BYTES):
                hashed.update(chunk)
                tail = chunk[-1:]
                while wanted and wanted[0] < position + len(chunk):
                    cut = chunk.find(b"\n", max(0, wanted[0] - position))
                    if cut < 0:
                        break
                    starts.append((position + cut + 1, lines + chunk.count(b"\n", 0, cut + 1) + 1))
                    wanted = [place for place in wanted if place > position + cut]
                lines += chunk.count(b"\n")
                position += len(chunk)
    except FileNotFoundError:
        raise JobFailure(Reason.INVALID_DATA, f"{path}: there is no such file; correct the dataset's path") from None
    except IsADirectoryError:
        raise JobFailure(Reason.INVALID_DATA, f"{path}: is a folder; name one JSONL file in it") from None
    except PermissionError:
        raise JobFailure(Reason.INVALID_DATA, f"{path}: may not be read; give this process access to it") from None
    starts = [start for start in starts if start[0] < position]
    if not starts:
        raise JobFailure(Reason.INVALID_DATA, f"{path}: the file is empty; write one row a line")
    ends = [start for start, _ in starts[1:]] + [position]
    split = [LineRange(start, end, first) for (start, first), end in zip(starts, ends, strict=True)]
    return Scan(sha256=hashed.hexdigest(), lines=lines + (tail != b"\n"), ranges=split)


def read_rows(path: Path, lines: LineRange) -> Iterator[Row | Fault]:
    """The rows of a range; lines of white space are passed over."""
    with path.open("rb") as file:
        file.seek(lines.start)
        position, number = lines.start, lines.first_line
        while position < lines.end and (raw := file.readline()):
            position += len(raw)
            if raw.strip():
                try:
                    yield Row(number, _parsed(raw, is_first=number == 1))
                except Refused as refused:
                    yield Fault(number, str(refused))
            number += 1


def _parsed(raw: bytes, *, is_first: bool) -> Any:
    try:
        text = raw.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"(line): byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise Refused(
            f"(line): broken JSON, {error.msg} at column {error.colno}; write one whole JSON value a line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"(line): not readable as JSON, {error}; write one whole JSON value a line") from None
