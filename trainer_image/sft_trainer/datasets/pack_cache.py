"""Packs on disk, so that ranks map them instead of packing anew: they share the memory, and start at once.

In: the digest of all that decides the packs, and a function that makes them. Out: `StoredPacks`, whose opening reads
next to nothing. Called by `prepare`.

    packs-<hash>/  pieces.npy   int32  [3, pieces]: sample, begin, length
                   offsets.npy  int64  where packs begin in the pieces, and the number of pieces
                   packs.npy    int64  [3, packs]: tokens, trained tokens, squares of the pieces' lengths
                   meta.json           the digest, what the samples come to, every file's size; written last
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sft_trainer.datasets.made_once import FolderMeta, made_once, read_meta, sizes, write_meta
from sft_trainer.datasets.pack import Packs
from sft_trainer.datasets.receipt import PackCounts
from sft_trainer.storage.folders import sync_path

FORMAT = 2
"""Raised by every change to what stands in the files."""
_FILES = ("pieces.npy", "offsets.npy", "packs.npy")


class _Meta(FolderMeta):
    format: int = FORMAT
    digest: str
    counts: PackCounts


@dataclass(frozen=True)
class StoredPacks:
    packs: Packs
    tokens: np.ndarray
    """[packs] int64"""
    trained: np.ndarray
    """[packs] int64: labels that count"""
    attention: np.ndarray
    """[packs] int64: the sum of squared lengths, which attention's cost goes with"""
    counts: PackCounts


def open_or_pack(
    cache_dir: Path, digest: str, *, pack: Callable[[], StoredPacks], on_wait: Callable[[], None]
) -> StoredPacks:
    """One process packs, the others wait for it."""
    folder = cache_dir / f"packs-{digest.removeprefix('sha256:')[:32]}"
    return made_once(
        folder,
        opened=lambda: _opened(folder, digest),
        make=lambda temporary: _write(temporary, digest, pack()),
        on_wait=on_wait,
    )


def _opened(folder: Path, digest: str) -> StoredPacks | None:
    meta = read_meta(folder, _Meta)
    if meta is None or (meta.format, meta.digest) != (FORMAT, digest):
        return None
    pieces, offsets, packs = (np.load(folder / name, mmap_mode="r") for name in _FILES)
    members, begins, lengths = pieces
    tokens, trained, attention = packs
    return StoredPacks(Packs(members, begins, lengths, offsets), tokens, trained, attention, meta.counts)


def _write(folder: Path, digest: str, stored: StoredPacks) -> None:
    packs = stored.packs
    np.save(folder / "pieces.npy", np.stack((packs.members, packs.begins, packs.lengths)).astype(np.int32))
    np.save(folder / "offsets.npy", packs.offsets)
    np.save(folder / "packs.npy", np.stack((stored.tokens, stored.trained, stored.attention)))
    for name in _FILES:
        sync_path(folder / name)
    write_meta(folder, _Meta(digest=digest, counts=stored.counts, bytes=sizes(folder, _FILES)))
