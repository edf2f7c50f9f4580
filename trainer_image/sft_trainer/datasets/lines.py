"""Reads rows from a JSONL file, plain or compressed.

In: a file of JSON values, one a line. Out: a `Row` a line, or a `Fault` that says what is wrong with it; nothing is
raised for a single line, so that several can be reported together. Called by `read`.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_trainer.datasets.files import is_compressed, opened
from sft_trainer.datasets.rows import Fault, Row, Span
from sft_trainer.datasets.values import Refused

_CHUNK_BYTES = 1 << 20


def scan_lines(path: Path, *, ranges: int) -> tuple[str, int, list[Span]]:
    """One pass over a plain file: its sha256, its number of lines, and spans of about equal size."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        wanted = [size * part // ranges for part in range(1, ranges)]
        hashed, position, lines, starts, tail = hashlib.sha256(), 0, 0, [(0, 1)], b"\n"
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
    starts = [start for start in starts if start[0] < position]
    ends = [start for start, _ in starts[1:]] + [position] if starts else []
    spans = [
        Span(path=path, form="jsonl", start=start, end=end, first=first, size=end - start)
        for (start, first), end in zip(starts, ends, strict=True)
    ]
    return hashed.hexdigest(), lines + (tail != b"\n"), spans


def read_lines(span: Span) -> Iterator[Row | Fault]:
    """Lines of white space are passed over."""
    with opened(span.path) as file:
        if is_compressed(span.path):
            left = None
        else:
            file.seek(span.start)
            left = span.end - span.start
        number = span.first
        while (left is None or left > 0) and (raw := file.readline()):
            if left is not None:
                left -= len(raw)
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
