"""Tokenised datasets on disk: a memory-mapped folder for each thing that was tokenised in one way.

In: a `CacheKey`, and a function that writes the parts. Out: a `TokenCache`, whose opening reads no tokens. Called by
`open_tokens` on every rank at once, before any process group exists.

    tokens-<hash>/  tokens.bin   uint32  the samples' tokens, one after the other
                    trained.bin  uint8   for each token, whether it is trained
                    offsets.npy  int64   where samples begin, and the number of tokens
                    samples.npy  int32   [samples, 2]: trained tokens, and 1 where the tail was cut
                    meta.json            the key, the counts, every file's size; written last
    tokens-<hash>.lock                   held while the folder is written
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft_trainer.datasets.made_once import FolderMeta, made_once, read_meta, sizes, write_meta
from sft_trainer.datasets.rows import BadRow
from sft_trainer.datasets.tokenize import Part
from sft_trainer.datasets.tokens import TextEnds
from sft_trainer.storage.folders import sync_path
from sftjob.base import Record, digest
from sftjob.receipt import MOST_TOLD

FORMAT = 4
"""Raised by a change to how the tokens or masks of most templates are made: it is part of the key, and a checkpoint of
another one can't be gone on with. A job keeps what it has tokenised."""
_FILES = ("tokens.bin", "trained.bin", "offsets.npy", "samples.npy")


class CacheKey(Record):
    """Everything that changes the result."""

    format: int = FORMAT
    content: str
    """sha256 of the files, and what else decides their rows."""
    tokenizer: dict[str, str]
    """sha256 of each of its files, versions of the libraries that read them."""
    chat_template: str | None = None
    """The text of a template that replaces the tokenizer's own."""
    row_format: str
    """The one that was found, or named."""
    columns: dict[str, str] | None = None
    """Where the rows have other names for its fields."""
    max_length: int
    overlong: str
    ends: TextEnds | None = None
    """Special tokens around texts, where they are not the tokenizer's own."""
    function: str | None = None
    """A user's own, by name and hash."""

    def digest(self) -> str:
        """Without what is newer than some caches, and than checkpoints that know them, where it changes nothing."""
        newer = {name for name in ("columns", "ends", "function") if getattr(self, name) is None}
        return digest(self.model_dump(mode="json", exclude=newer))


class CacheMeta(FolderMeta):
    key: CacheKey
    rows: int
    samples: int
    tokens: int
    trained_tokens: int
    largest_token: int
    truncated: int
    dropped: int
    thoughtless: int = 0
    """Answers that are trained without their thoughts, which the chat template leaves out."""
    bad_rows: int
    """Skipped."""
    told: list[BadRow]
    """The first of them."""


@dataclass(frozen=True)
class TokenCache:
    meta: CacheMeta
    tokens: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    trained_counts: np.ndarray
    is_cut: np.ndarray


def cache_folder(cache_dir: Path, key: CacheKey) -> Path:
    return cache_dir / f"tokens-{key.digest().removeprefix('sha256:')[:32]}"


def open_or_build(
    cache_dir: Path, key: CacheKey, *, build: Callable[[Path], list[Part]], on_wait: Callable[[], None]
) -> TokenCache:
    """One process builds, the others wait for it. `build` writes the parts into the folder that it is given."""
    folder = cache_folder(cache_dir, key)
    return made_once(
        folder,
        opened=lambda: open_cache(folder, key),
        make=lambda temporary: _join(temporary, key, build(temporary)),
        on_wait=on_wait,
    )


def open_cache(folder: Path, key: CacheKey) -> TokenCache | None:
    meta = read_meta(folder, CacheMeta)
    if meta is None or meta.key != key:
        return None
    table = np.load(folder / "samples.npy", mmap_mode="r")
    return TokenCache(
        meta=meta,
        tokens=_mapped(folder / "tokens.bin", np.uint32),
        trained=_mapped(folder / "trained.bin", np.bool_),
        offsets=np.load(folder / "offsets.npy", mmap_mode="r"),
        trained_counts=table[:, 0],
        is_cut=table[:, 1],
    )


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    if path.stat().st_size == 0:  # every sample was dropped; an empty file can't be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _join(folder: Path, key: CacheKey, parts: list[Part]) -> None:
    """The parts' files become one of each kind, in the order of the parts."""
    for name in ("tokens", "trained"):
        _concatenate([folder / f"{name}-{part}.bin" for part in range(len(parts))], folder / f"{name}.bin")
    table = np.concatenate([np.load(folder / f"samples-{part}.npy") for part in range(len(parts))])
    for part in range(len(parts)):
        (folder / f"samples-{part}.npy").unlink()
    np.save(folder / "offsets.npy", np.concatenate(([0], np.cumsum(table[:, 0], dtype=np.int64))))
    np.save(folder / "samples.npy", table[:, 1:])
    for name in _FILES:
        sync_path(folder / name)
    counts = ("rows", "samples", "tokens", "trained_tokens", "truncated", "dropped", "thoughtless", "bad_rows")
    meta = CacheMeta(
        key=key,
        bytes=sizes(folder, _FILES),
        largest_token=max(part.largest_token for part in parts),
        told=[row for part in parts for row in part.told][:MOST_TOLD],
        **{count: sum(getattr(part, count) for part in parts) for count in counts},
    )
    write_meta(folder, meta)


def _concatenate(sources: list[Path], target: Path) -> None:
    sources[0].rename(target)
    with target.open("ab") as joined:
        for source in sources[1:]:
            with source.open("rb") as file:
                shutil.copyfileobj(file, joined, 1 << 20)
            source.unlink()
