"""Which files a dataset's path stands for, and how each is written.

In: the path of a file, or of a folder of files. Out: the files, in the order in which their rows count; the form of
each, by its name's ending and, for `.json`, its first character. Called by `open_tokens` and `read`; downloads ask it
what will be read of a folder.
"""

import io
import os
from pathlib import Path, PurePath
from typing import Literal

import pyarrow as pa

from sftjob.failure import JobFailure, Reason

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
_COMPRESSED = (".gz", ".zst")
_SPLITS = "dataset_dict.json"
_HELD_OUT = {"test", "validation", "valid", "val", "dev", "eval"}
_DESCRIPTIONS = (_SPLITS, "dataset_info.json", "dataset_infos.json", "state.json")
"""What the library `datasets` writes beside its tables."""


def data_files(path: Path) -> list[Path]:
    """The file itself, or all files of a folder and of those in it that `is_read`, by their paths in it.

    Links to folders are not followed. Raises JobFailure for a folder without any, or whose folders are splits.
    """
    if not path.is_dir():
        return [path]
    below = []
    for folder, folders, names in os.walk(path, onerror=_raise):
        # To train on all of them would be to train on what is held out.
        if _SPLITS in names or ("train" in folders and not _HELD_OUT.isdisjoint(folders)):
            splits = ", ".join(sorted(each for each in folders if each[0] != "."))
            raise JobFailure(
                Reason.INVALID_DATA, f"{folder}: its folders are splits of a dataset, {splits}; name one of them"
            )
        below += [Path(folder, name) for name in names]
    found = sorted(file for file in below if is_read(file.relative_to(path)) and file.is_file())
    if not found:
        raise JobFailure(Reason.INVALID_DATA, f"{path}: no file in it ends in {ENDINGS}; name a file or folder")
    return found


def is_read(path: PurePath) -> bool:
    """Whether a file counts that lies there in a dataset's folder: by its ending. What is hidden does not."""
    is_hidden = any(part.startswith(".") for part in path.parts)
    return _ending(path) in _FORMS and path.name not in _DESCRIPTIONS and not is_hidden


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


def _ending(path: PurePath) -> str:
    return PurePath(path.stem if is_compressed(path) else path.name).suffix.lower()


def _raise(error: OSError) -> None:
    """`os.walk` would leave out a folder that it may not read."""
    raise error
