"""Reads rows from Parquet and Arrow files, a few at a time.

In: a file, for Parquet a run of its row groups. Out: each row as JSON would have it. Called by `read`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sft_trainer.datasets.files import is_compressed, opened
from sft_trainer.datasets.rows import Row, Span

_ROWS_AT_ONCE = 256
_ARROW_FILE = b"ARROW1"
"""How Arrow's file format begins; its stream format, which `datasets` saves, does not."""


def scan_parquet(path: Path) -> tuple[int, list[Span]]:
    """Its number of rows, and a span for each row group that has some."""
    size = path.stat().st_size
    with pq.ParquetFile(path) as file:
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    rows = sum(counts)
    spans = [
        Span(
            path=path,
            form="parquet",
            start=group,
            end=group + 1,
            first=1 + sum(counts[:group]),
            size=size * count // rows,
        )
        for group, count in enumerate(counts)
        if count
    ]
    return rows, spans


def read_parquet(span: Span) -> Iterator[Row]:
    with pq.ParquetFile(span.path) as file:
        yield from _rows(file.iter_batches(_ROWS_AT_ONCE, row_groups=range(span.start, span.end)), first=span.first)


def read_arrow(span: Span) -> Iterator[Row]:
    with opened(span.path) as source:
        is_file = source.peek(len(_ARROW_FILE)).startswith(_ARROW_FILE)
        if not is_file:
            with pa.ipc.open_stream(source) as stream:
                yield from _rows(stream, first=span.first)
        else:
            places = pa.BufferReader(source.read()) if is_compressed(span.path) else source
            with pa.ipc.open_file(places) as table:
                batches = (table.get_batch(index) for index in range(table.num_record_batches))
                yield from _rows(batches, first=span.first)


def _rows(batches: Iterator[pa.RecordBatch], *, first: int) -> Iterator[Row]:
    number = first
    for whole in batches:
        for start in range(0, len(whole), _ROWS_AT_ONCE):
            for value in whole.slice(start, _ROWS_AT_ONCE).to_pylist(maps_as_pydicts="lossy"):
                yield Row(number, _without_nulls(value))
                number += 1


def _without_nulls(value: Any) -> Any:
    """A table gives each object the fields of all of them: what was not there is null, and a template would write it
    into a tool's description or a call."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value
