"""Which files a dataset's path stands for, and how each is written.

In: the path of a file, or of a folder of files. Out: the files, in the order in which their rows count; the form of
each, by its name's ending and, for `.json`, its first character. Called by `open_tokens` and `read`.
"""

import io
from pathlib import Path
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
_COMPRESSED = (".gz", ".zst")
_DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
"""What the library `datasets` writes beside its tables."""


def data_files(path: Path) -> list[Path]:
    """The file itself, or of a folder all files of a known ending by their names, without those of folders in it.

    Raises JobFailure for a folder that has none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(
        file
        for file in path.iterdir()
        if _ending(file) in _FORMS and file.name not in _DESCRIPTIONS and file.name[0] != "." and file.is_file()
    )
    if not found:
        folders = sorted(each.name for each in path.iterdir() if each.is_dir() and each.name[0] != ".")[:5]
        others = f"; its folders are {', '.join(folders)}: name one of them" if folders else "; name a file or folder"
        raise JobFailure(Reason.INVALID_DATA, f"{path}: no file in it ends in {', '.join(_FORMS)}{others}")
    return found


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


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in _COMPRESSED


def opened(path: Path) -> io.BufferedReader:
    """Its bytes, unpacked where the ending says that they are packed."""
    if is_compressed(path):
        compression = "gzip" if path.suffix.lower() == ".gz" else "zstd"
        return io.BufferedReader(pa.input_stream(str(path), compression=compression))
    return path.open("rb")


def _ending(path: Path) -> str:
    return Path(path.stem if is_compressed(path) else path.name).suffix.lower()
