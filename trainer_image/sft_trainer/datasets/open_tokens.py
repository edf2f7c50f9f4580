"""One dataset's file as tokens: from the cache, or tokenised into it.

In: the dataset's configuration and the tokenizer's fingerprint. Out: a `TokenCache`. Called by `prepare`.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from sft_trainer.datasets.build import build_parts
from sft_trainer.datasets.cache import CacheKey, TokenCache, open_or_build
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig, DatasetEntry
from sft_trainer.datasets.formats import known_format
from sft_trainer.datasets.known_files import KnownFile
from sft_trainer.datasets.read import Fault, LineRange, read_rows, scan
from sft_trainer.datasets.template import chat_template_named
from sft_trainer.datasets.tokenize import Part, Reading
from sft_trainer.datasets.values import Refused
from sftjob.failure import JobFailure, Reason

log = logging.getLogger(__name__)

_BYTES_A_WORKER = 16 << 20
"""A worker takes seconds to start, in which one process tokenises about this much."""
_SECONDS_BETWEEN_DETAILS = 0.3


def open_tokens(
    config: DataloaderConfig,
    entry: DatasetEntry,
    tokenizer: dict[str, str],
    *,
    tokenizer_path: str,
    cache_dir: Path,
    on_detail: Callable[[str], None],
) -> TokenCache:
    """Raises JobFailure, for bad lines with file, line and field."""
    path, template = entry.dataset.anno_path, entry.tokenize_fn.chat_template
    folder = entry.dataset.cache_dir or cache_dir
    known = KnownFile(path, folder=folder)
    found = None if (sha256 := known.sha256()) else scan(path, ranges=_workers(path, config.num_workers))
    reading = Reading(
        row_format=_row_format(entry.dataset), max_length=config.max_length(entry), overlong=config.overlong
    )
    key = CacheKey(
        file_sha256=sha256 or found.sha256,
        tokenizer=tokenizer,
        chat_template=chat_template_named(template) if template else None,
        row_format=reading.row_format,
        max_length=reading.max_length,
        overlong=reading.overlong,
    )
    prefix = f"{entry.dataset.name}: " if len(config.dataset_config_list) > 1 else ""
    tell = _at_most_every(_SECONDS_BETWEEN_DETAILS, on_detail)

    def build(temporary: Path) -> list[Part]:
        lines = found or scan(path, ranges=_workers(path, config.num_workers))
        return build_parts(
            path,
            lines,
            tokenizer_path=tokenizer_path,
            chat_template=template,
            reading=reading,
            folder=temporary,
            on_rows=lambda rows: tell(f"{prefix}{rows} of {lines.lines} rows"),
        )

    cache = open_or_build(
        folder, key, build=build, on_wait=lambda: tell(f"{prefix}another process tokenises {path.name}")
    )
    known.remember(key.file_sha256)
    return cache


def _row_format(dataset: DatasetConfig) -> str:
    """What its configuration names, or else what the first row has."""
    if dataset.format != "auto":
        return dataset.format
    path = dataset.anno_path
    for row in read_rows(path, LineRange(start=0, end=path.stat().st_size, first_line=1)):
        try:
            if isinstance(row, Fault):
                raise Refused(row.problem)
            row_format = known_format(row.value)
        except Refused as refused:
            raise JobFailure(Reason.INVALID_DATA, f"{path}:{row.line}: {refused}") from None
        log.info("%s: rows of the format %s", path, row_format)
        return row_format
    raise JobFailure(Reason.INVALID_DATA, f"{path}: only blank lines; write one row a line")


def _workers(path: Path, most: int) -> int:
    size = path.stat().st_size if path.is_file() else 0
    return max(1, min(most, size // _BYTES_A_WORKER))


def _at_most_every(seconds: float, tell: Callable[[str], None]) -> Callable[[str], None]:
    last = -seconds

    def tell_sometimes(detail: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(detail)

    return tell_sometimes
