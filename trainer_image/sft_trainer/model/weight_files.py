"""Which files hold a model folder's weights, and what tells one model's from another's.

Called by `weights`, and by `RunOptions.digest`: a checkpoint of LoRA holds no base weights.
"""

import functools
import hashlib
import json
from pathlib import Path

from sftjob.failure import JobFailure, Reason

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LISTED = 8
_PIECES = 64
_PIECE_BYTES = 65_536


def weight_files(folder: Path) -> list[Path]:
    """Raises JobFailure(MODEL_UNREADABLE) where one is missing."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = folder / _INDEX
    if not index.is_file():
        raise unreadable(f"{folder}: neither {_SINGLE} nor {_INDEX}; name a folder with the model's safetensors")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise unreadable(f"{index}: not an index of safetensors; copy the model again") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise unreadable(f"{index}: names files that are missing: {listed(missing)}; copy the model again")
    return [folder / name for name in names]


@functools.cache
def weights_fingerprint(folder: str) -> dict[str, str]:
    """By file of weights: a digest of its size and of evenly spread pieces, up to 4 MiB together.

    Two trainings of one model differ in nearly every number, so in each piece. Once a process; raises
    JobFailure(MODEL_UNREADABLE) where a file is missing.
    """
    return {file.name: _digest(file) for file in weight_files(Path(folder))}


def _digest(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for piece in range(_PIECES):
            opened.seek(piece * max(0, size - _PIECE_BYTES) // (_PIECES - 1))
            digest.update(opened.read(_PIECE_BYTES))
    return digest.hexdigest()


def listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more


def unreadable(message: str) -> JobFailure:
    return JobFailure(Reason.MODEL_UNREADABLE, message)
