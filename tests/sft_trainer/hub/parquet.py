"""Parquet files in memory, for repositories of the tests' hub."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def parquet(rows: list[dict[str, Any]]) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), written)
    return written.getvalue()
