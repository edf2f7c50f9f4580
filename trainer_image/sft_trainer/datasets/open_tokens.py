"""One dataset's files as tokens: from the cache, or tokenised into it.

In: the dataset's configuration and the tokenizer's fingerprint. Out: a `TokenCache`. Called by `prepare`.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sft_trainer.datasets.bad_rows import BadRows, bad_rows_of
from sft_trainer.datasets.build import build_parts
from sft_trainer.datasets.cache import CacheKey, TokenCache, open_or_build
from sft_trainer.datasets.config import DataloaderConfig, DatasetEntry, PretrainTokenizeFunctionConfig
from sft_trainer.datasets.files import data_files
from sft_trainer.datasets.formats import OWN, known_format
from sft_trainer.datasets.known_files import Known, KnownFiles
from sft_trainer.datasets.own import identity, tokens_by
from sft_trainer.datasets.read import first_rows, scan
from sft_trainer.datasets.render import load_tokenizer
from sft_trainer.datasets.rows import Fault
from sft_trainer.datasets.template import chat_template_named
from sft_trainer.datasets.tokenize import Part, Reading
from sft_trainer.datasets.tokens import TextEnds
from sft_trainer.datasets.values import Refused
from sftjob.failure import JobFailure, Reason
from sftjob.forms import formats_with

_BYTES_A_WORKER = 16 << 20
"""A worker takes seconds to start, in which one process tokenises about this much."""
_ROWS_TRIED = 100
"""From the first on, for one that tells the format."""
_SECONDS_BETWEEN_DETAILS = 0.3


def open_tokens(
    config: DataloaderConfig,
    entry: DatasetEntry,
    tokenizer: dict[str, str],
    *,
    before: BadRows,
    tokenizer_path: str,
    cache_dir: Path,
    on_detail: Callable[[str], None],
) -> TokenCache:
    """`before` are the bad rows of datasets before this one.

    Raises JobFailure, for more bad rows than the budget has with file, line and field.
    """
    path, template, columns = entry.dataset.anno_path, entry.chat_template, entry.dataset.columns
    function = entry.tokenize_fn.build(load_tokenizer(tokenizer_path)) if entry.has_own_function else None
    folder = entry.dataset.cache_dir or cache_dir
    files = data_files(path)
    workers = 1 if function else _workers(files, config.num_workers)
    known_files = KnownFiles(files, folder=folder)
    known = known_files.recall()
    found = None if known else scan(path, workers=workers)
    row_format, ends = _named_format(entry), _ends(entry)
    is_found = row_format == "auto"
    if is_found:
        row_format = (known.row_format if known and not columns else None) or _row_format(path, columns)
    reading = Reading(
        row_format=row_format,
        columns=columns,
        ends=ends,
        max_length=config.max_length(entry),
        overlong=config.overlong,
        budget=config.bad_line_budget,
    )
    key = CacheKey(
        content=known.sha256 if known else found.sha256,
        tokenizer=tokenizer,
        chat_template=chat_template_named(template) if template else None,
        row_format=reading.row_format,
        columns=columns or None,
        max_length=reading.max_length,
        overlong=reading.overlong,
        ends=ends,
        function=identity(function) if function else None,
    )
    prefix = f"{entry.dataset.name}: " if len(config.dataset_config_list) > 1 else ""
    tell = _at_most_every(_SECONDS_BETWEEN_DETAILS, on_detail)

    def build(temporary: Path) -> list[Part]:
        scanned = found or scan(path, workers=workers)
        of_all = "" if scanned.rows is None else f" of {scanned.rows}"
        return build_parts(
            path,
            scanned,
            tokenizer_path=tokenizer_path,
            chat_template=template,
            own=tokens_by(function) if function else None,
            reading=reading,
            before=before,
            folder=temporary,
            on_rows=lambda rows: tell(f"{prefix}{rows}{of_all} rows"),
        )

    cache = open_or_build(
        folder, key, build=build, on_wait=lambda: tell(f"{prefix}another process tokenises {path.name}")
    )
    if is_found and not columns:
        known_files.remember(Known(sha256=key.content, row_format=row_format))
    elif known is None:
        known_files.remember(Known(sha256=key.content))
    # Made under a larger budget, it may hold more bad rows than this one has.
    (before + bad_rows_of_cache(entry, cache)).check(config.bad_line_budget)
    return cache


def bad_rows_of_cache(entry: DatasetEntry, cache: TokenCache) -> BadRows:
    return bad_rows_of(entry.dataset.anno_path, cache.meta.bad_rows, cache.meta.told)


def _named_format(entry: DatasetEntry) -> str:
    """`auto` where the rows are to tell."""
    if entry.has_own_function:
        return OWN
    if isinstance(entry.tokenize_fn, PretrainTokenizeFunctionConfig):
        return "text"
    possible = formats_with(entry.dataset.columns)
    return possible[0] if entry.dataset.format == "auto" and len(possible) == 1 else entry.dataset.format


def _ends(entry: DatasetEntry) -> TextEnds | None:
    tokenize_fn = entry.tokenize_fn
    if not isinstance(tokenize_fn, PretrainTokenizeFunctionConfig):
        return None
    return TextEnds(begin=tokenize_fn.add_bos_token, end=tokenize_fn.add_eos_token)


def _row_format(path: Path, columns: Mapping[str, str]) -> str:
    """Of the first row that has a known one: those before it are bad rows, told when all are read."""
    problem = None
    for tried, (span, row) in enumerate(first_rows(path)):
        if tried == _ROWS_TRIED:
            break
        try:
            if isinstance(row, Fault):
                raise Refused(row.problem)
            return known_format(row.value, columns)
        except Refused as refused:
            problem = problem or f"{span.path}{span.place(row.line)}: {refused}"
    raise JobFailure(Reason.INVALID_DATA, problem or f"{path}: no row in it; give it some")


def _workers(files: list[Path], most: int) -> int:
    size = sum(file.stat().st_size for file in files if file.is_file())
    return max(1, min(most, size // _BYTES_A_WORKER))


def _at_most_every(seconds: float, tell: Callable[[str], None]) -> Callable[[str], None]:
    last = -seconds

    def tell_sometimes(detail: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(detail)

    return tell_sometimes
