"""Which files a dataset's path stands for, and how each is written.

In: the path of a file, or of a folder of files. Out: the files, in the order in which their rows count; the form of
each, by its name's ending and, for `.json`, its first character. Called by `open_tokens` and `read`; downloads ask it
what is read of a folder.
"""

import io
import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Literal, TypeVar

import pyarrow as pa

from sftjob.failure import JobFailure, Reason

P = TypeVar("P", bound=PurePath)
Form = Literal["jsonl", "json", "parquet", "arrow"]
_FORMS: dict[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
ENDINGS = ", ".join(_FORMS)
"""That are read of a folder, for messages."""
_OTHER_FORMS = (".csv", ".tsv", ".xlsx", ".zip", ".tar")
"""Endings of files that hold no JSON, whatever their rows are. Another one may be anybody's for JSONL."""
_COMPRESSED = (".gz", ".zst")
_SPLITS = "dataset_dict.json"
_HELD_OUT = {"test", "validation", "valid", "val", "dev", "eval"}
_DESCRIPTIONS = (_SPLITS, "dataset_info.json", "dataset_infos.json", "state.json")
"""What the library `datasets` writes beside its tables."""


def data_files(path: Path) -> list[Path]:
    """The file itself, or all files of a folder that `files_of_folder` takes. Links to folders are not followed.

    Raises JobFailure for a file in a form that is none of these.
    """
    if not path.is_dir():
        if _ending(path) in _OTHER_FORMS:
            raise JobFailure(
                Reason.INVALID_DATA,
                f"{path}: files that end in {_ending(path)} are not read; write its rows as {ENDINGS}",
            )
        return [path]
    below = [Path(folder, name) for folder, _, names in os.walk(path, onerror=_raise) for name in names]
    files = [file.relative_to(path) for file in below if file.is_file()]
    return [path / file for file in files_of_folder(files, place=str(path))]


def files_of_folder(files: Iterable[P], *, place: str) -> list[P]:
    """Of all files in a folder and in those below it, by their paths in it: those that `is_read`, sorted.

    `place` is what messages call the folder. Raises JobFailure for one without any, or with folders that are splits.
    """
    seen = [file for file in files if not _is_hidden(file)]
    folders: dict[PurePath, set[str]] = {}
    for file in seen:
        for folder in file.parents[:-1]:
            folders.setdefault(folder.parent, set()).add(folder.name)
    # To train on all of them would be to train on what is held out.
    divided = {file.parent for file in seen if file.name == _SPLITS}
    divided |= {each for each, names in folders.items() if "train" in names and not _HELD_OUT.isdisjoint(names)}
    if divided:
        first = min(divided)
        raise JobFailure(
            Reason.INVALID_DATA,
            f"{place}{f'/{first}' if first.parts else ''}: its folders are splits of a dataset, "
            f"{', '.join(sorted(folders.get(first, ())))}; name one of them",
        )
    # In a bucket an object may have the name of a folder.
    found = sorted(file for file in seen if is_read(file) and file.name not in folders.get(file.parent, ()))
    if not found:
        raise JobFailure(Reason.INVALID_DATA, f"{place}: no file in it ends in {ENDINGS}; name a file or folder")
    return found


def is_read(path: PurePath) -> bool:
    """Whether a file counts that lies there in a dataset's folder: by its ending. What is hidden does not."""
    return _ending(path) in _FORMS and path.name not in _DESCRIPTIONS and not _is_hidden(path)


def form_of(path: Path) -> Form:
    """JSONL where the ending is unknown, and where a `.json` file is no array. Raises OSError."""
    form = _FORMS.get(_ending(path), "jsonl")
    if form != "json":
        return form
    with opened(path) as file:
        while first := file.read(1 << 10):
            if first := first.removeprefix(b"\xef\xbb\xbf").lstrip():
                return "json" if first.startswith(b"[") else "jsonl"
    return "jsonl"


def is_compressed(path: PurePath) -> bool:
    return path.suffix.lower() in _COMPRESSED


def opened(path: Path) -> io.BufferedReader:
    """Its bytes, unpacked where the ending says that they are packed."""
    if is_compressed(path):
        compression = "gzip" if path.suffix.lower() == ".gz" else "zstd"
        return io.BufferedReader(pa.input_stream(str(path), compression=compression))
    return path.open("rb")


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _ending(path: PurePath) -> str:
    return PurePath(path.stem if is_compressed(path) else path.name).suffix.lower()


def _raise(error: OSError) -> None:
    """`os.walk` would leave out a folder that it may not read."""
    raise error
