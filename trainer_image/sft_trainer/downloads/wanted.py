"""Which files of a repository or a folder training needs: chosen from a listing, before any large one is downloaded.

Called by both kinds of transfer. Of a model: configuration, tokenizer, and of the weights only the safetensors that our
loader reads, once. Of a dataset's folder: what is read of one on a disk.
"""

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import TypeVar

from sft_trainer.datasets.files import files_of_folder
from sft_trainer.downloads.sources import Source
from sft_trainer.downloads.transfer import RemoteFile
from sftjob.failure import JobFailure, Reason

TEMPLATES = "additional_chat_templates"
_SMALL = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "vocab.*", f"{TEMPLATES}/*")
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LISTED = 5

F = TypeVar("F", bound=RemoteFile)


def small_files(listing: Mapping[str, F]) -> list[F]:
    """Of a model: everything but weights and papers."""
    return [file for path, file in listing.items() if any(fnmatch(path, pattern) for pattern in _SMALL)]


def weight_files(source: Source, listing: Mapping[str, F]) -> list[F]:
    """Of a model whose small files are on disk already. Raises JobFailure where there are no safetensors."""
    if _SINGLE in listing:
        return [listing[_SINGLE]]
    if _INDEX not in listing:
        others = [path for path in listing if fnmatch(path, "*.safetensors") or PurePosixPath(path).suffix == ".bin"]
        has = f"only {', '.join(others[:_LISTED])}" if others else "no weights"
        raise JobFailure(
            Reason.MODEL_UNREADABLE,
            f"{source.field}.uri: {source.uri} has neither {_SINGLE} nor {_INDEX}, but {has}; "
            "name a place, or another revision of this one, that has the model's safetensors",
        )
    try:
        index = json.loads((source.files / _INDEX).read_text(encoding="utf-8"))
        named = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise JobFailure(
            Reason.MODEL_UNREADABLE,
            f"{source.field}.uri: {_INDEX} of {source.uri} is no index of safetensors; name another revision",
        ) from None
    missing = [name for name in named if name not in listing]
    if missing:
        raise JobFailure(
            Reason.MODEL_UNREADABLE,
            f"{source.field}.uri: {_INDEX} of {source.uri} names files that are not there: "
            f"{', '.join(missing[:_LISTED])}; name another revision",
        )
    return [listing[name] for name in named]


def data_files(source: Source, listing: Mapping[str, F]) -> list[F]:
    """Of a dataset's folder, whose files `listing` has by their paths in it, at any depth: those that are read.

    Raises JobFailure.
    """
    by_path = {PurePosixPath(path): file for path, file in listing.items()}
    return [by_path[path] for path in files_of_folder(by_path, place=f"{source.field}.uri: {source.uri.rstrip('/')}")]
