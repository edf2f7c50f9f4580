"""Reads rows from a dataset's files, whatever form they have.

In: the path of a file or a folder. Out: `Scan`, what stands in it and who reads what; then, for each span, a `Row` or a
`Fault` for each of its rows. `open_tokens` calls `scan` and `first_rows`, `tokenize` reads spans.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sft_trainer.datasets.files import data_files, form_of, is_compressed, opened
from sft_trainer.datasets.lines import read_lines, scan_lines
from sft_trainer.datasets.rows import Fault, Row, Span
from sft_trainer.datasets.tables import read_arrow, read_parquet, scan_parquet
from sftjob.base import digest
from sftjob.failure import JobFailure, Reason


@dataclass(frozen=True)
class Scan:
    sha256: str
    """Of all that decides the rows."""
    rows: int | None
    """None where only reading would tell."""
    shares: list[list[Span]]
    """For each process the spans that it reads: together every row once, in the order of the files."""


def scan(path: Path, *, workers: int) -> Scan:
    """One pass over the files, for at most so many processes.

    Raises JobFailure where there is no such file, or nothing in it.
    """
    digests: list[tuple[str, ...]] = []
    counts: list[int | None] = []
    spans: list[Span] = []
    files = data_files(path)
    total = sum(file.stat().st_size for file in files if file.is_file())
    for file in files:
        with _told(file):
            share = max(1, round(workers * file.stat().st_size / max(1, total)))
            form, (sha256, rows, found) = form_of(file), _scan_file(file, ranges=share)
        digests.append((form, sha256) if file == path else (form, sha256, file.relative_to(path).as_posix()))
        counts.append(rows)
        spans += found
    if not spans:
        raise JobFailure(Reason.INVALID_DATA, f"{path}: the file is empty; write one row a line")
    known = [rows for rows in counts if rows is not None]
    return Scan(
        sha256=digest(digests).removeprefix("sha256:"),
        rows=sum(known) if len(known) == len(counts) else None,
        shares=_shared(spans, workers),
    )


def read_rows(span: Span) -> Iterator[Row | Fault]:
    """Raises JobFailure where not a row but the file is broken."""
    with _told(span.path):
        match span.form:
            case "jsonl":
                yield from read_lines(span)
            case "json":
                yield from _read_array(span)
            case "parquet":
                yield from read_parquet(span)
            case "arrow":
                yield from read_arrow(span)


def first_rows(path: Path) -> Iterator[tuple[Span, Row | Fault]]:
    """From the first row of the first file on, with where they stand."""
    for file in data_files(path):
        with _told(file):
            _, spans = _whole(file)
        for span in spans:
            for row in read_rows(span):
                yield span, row


def _scan_file(path: Path, *, ranges: int) -> tuple[str, int | None, list[Span]]:
    if form_of(path) == "jsonl" and not is_compressed(path):
        return scan_lines(path, ranges=ranges)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return sha256, *_whole(path)


def _whole(path: Path) -> tuple[int | None, list[Span]]:
    """Its number of rows where it tells that, and its spans."""
    form, size = form_of(path), path.stat().st_size
    if form == "parquet":
        if is_compressed(path):
            raise _broken(path, "Parquet is compressed by itself; unpack the file around it")
        return scan_parquet(path)
    return None, [Span(path=path, form=form, end=size, size=size)] if size else []


def _shared(spans: list[Span], workers: int) -> list[list[Span]]:
    """Runs of spans of about the same size, neighbours in one file joined."""
    shares: list[list[Span]] = [[] for _ in range(workers)]
    total, before = sum(span.size for span in spans), 0
    for span in spans:
        share = shares[min(workers - 1, before * workers // max(1, total))]
        before += span.size
        if share and (share[-1].path, share[-1].end) == (span.path, span.start):
            share[-1] = share[-1].model_copy(update={"end": span.end, "size": share[-1].size + span.size})
        else:
            share.append(span)
    return [share for share in shares if share]


def _read_array(span: Span) -> Iterator[Row]:
    with opened(span.path) as file:
        content = file.read()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _broken(span.path, f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"broken JSON, {error.msg} at line {error.lineno} column {error.colno}"
        raise _broken(span.path, f"{where}; write one array of rows, or name a file of one row a line .jsonl") from None
    except (ValueError, RecursionError) as error:
        raise _broken(span.path, f"not readable as JSON, {error}; write one array of rows") from None
    for number, value in enumerate(rows, start=1):
        yield Row(number, value)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise _broken(path, "there is no such file; correct the dataset's path") from None
    except PermissionError:
        raise _broken(path, "may not be read; give this process access to it") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the file's
            raise
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise _broken(path, f"is damaged, or not what its ending says ({said}); write it anew") from None


def _broken(path: Path, what: str) -> JobFailure:
    return JobFailure(Reason.INVALID_DATA, f"{path}: {what}")
