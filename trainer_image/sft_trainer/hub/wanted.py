"""Which files of a repository training needs: chosen from the hub's listing, before any large one is downloaded.

Called by `download`. Of a model: configuration, tokenizer, and of the weights only the safetensors that our loader
reads, once. Of a dataset: the file, or the files that lie directly in the folder.
"""

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from huggingface_hub.hf_api import RepoFile, RepoFolder

from sft_trainer.hub.sources import HubSource
from sftjob.failure import JobFailure, Reason

TEMPLATES = "additional_chat_templates"
_SMALL = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "vocab.*", f"{TEMPLATES}/*")
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LISTED = 5

Listing = Mapping[str, RepoFile]
"""The repository's files, by path."""


def small_files(listing: Listing) -> list[RepoFile]:
    """Of a model: everything but weights and papers."""
    return [file for path, file in listing.items() if any(fnmatch(path, pattern) for pattern in _SMALL)]


def weight_files(source: HubSource, listing: Listing) -> list[RepoFile]:
    """Of a model whose small files are on disk already. Raises JobFailure where there are no safetensors."""
    if _SINGLE in listing:
        return [listing[_SINGLE]]
    if _INDEX not in listing:
        others = [path for path in listing if fnmatch(path, "*.safetensors") or PurePosixPath(path).suffix == ".bin"]
        has = f"only {', '.join(others[:_LISTED])}" if others else "no weights"
        raise JobFailure(
            Reason.MODEL_UNREADABLE,
            f"{source.field}.uri: {source.uri} has neither {_SINGLE} nor {_INDEX}, but {has}; "
            "name a repository, or a revision of this one, that has the model's safetensors",
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


def data_files(source: HubSource, found: list[RepoFile | RepoFolder]) -> list[RepoFile]:
    """Of what lies at the dataset's path. Raises JobFailure where that is no file, and no folder with any."""
    files = [entry for entry in found if isinstance(entry, RepoFile) and not Path(entry.path).name.startswith(".")]
    if files:
        return files
    folders = [entry.path for entry in found if isinstance(entry, RepoFolder)]
    remedy = (
        f"name one of its folders {', '.join(folders[:_LISTED])}" if folders else "name a file, or a folder of files"
    )
    raise JobFailure(
        Reason.INVALID_DATA,
        f"{source.field}.uri: there is no file at {source.path} of {source.repository} at {source.revision}; {remedy}",
    )
