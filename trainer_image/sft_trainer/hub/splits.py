"""Which files of a hub's dataset are one split of one configuration, as the library `datasets` would have it.

In: the paths in the repository, and its card, which lies in `source.files` already. Out: the split's paths. Called by
`download`.

The library knows all that a card may declare, and all names of files and folders by which the hub tells splits. It is
shown the repository as a folder of empty files: so it asks no hub, needs no token and writes no cache, and what it
names is downloaded and read as any other data is. (Where a card names a URL, the library looks there before that is
refused.)
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from sft_trainer.datasets.files import is_read
from sft_trainer.downloads.sources import HubSource
from sftjob.failure import JobFailure, Reason

CARD = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""Where a dataset's configurations are declared."""
_DEFAULT_SPLIT = "train"
_CONVERTED = "refs/convert/parquet"
_CHANGES_ROWS = ("field", "columns", "filters")
"""Of what a card can say of its files: a part of each row, or of the rows."""
_LISTED = 20


def files_of_split(source: HubSource, paths: Sequence[str]) -> list[str]:
    """Raises JobFailure."""
    script = f"{source.repository.partition('/')[2]}.py"
    if script in paths:
        raise _refused(
            source,
            "uri",
            f"{source.repository} is made by a program, {script}, which is not run here; name the Parquet files that "
            f"the hub has made of it: {source.uri}/<config>/<split>, with revision: {_CONVERTED}",
        )
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch, "image").resolve()
        for path in paths:
            _put(image, path, source)
        try:
            files = _files_by_split(source, image)
        except JobFailure:
            raise
        except Exception as error:  # of what strangers have written, the library may stumble over anything
            said = str(error).replace(str(image), source.repository).partition(" with any supported extension")[0]
            raise _refused(
                source,
                "uri",
                f"nobody can tell which files of {source.repository} are its data ({' '.join(said.split())[:300]}); "
                "name a file of it, or a folder",
            ) from error
    if source.split is None and _DEFAULT_SPLIT not in files:
        raise _refused(
            source, "split", f"missing, and {source.repository} has no {_DEFAULT_SPLIT}; use {_listed(files)}"
        )
    split = source.split or _DEFAULT_SPLIT
    if split not in files:
        raise _refused(source, "split", f"{split!r} is none of {source.repository}; use {_listed(files)}")
    return _checked(source, files[split], paths)


def _put(image: Path, path: str, source: HubSource) -> None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise _refused(source, "uri", f"{source.repository} lists a file {path!r}; name another dataset")
    target = image / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((source.files / path).read_bytes() if path in CARD else b"")


def _files_by_split(source: HubSource, image: Path) -> Mapping[str, list[str]]:
    """Raises JobFailure, or anything else that the library raises."""
    import datasets  # here, because it takes seconds, and few jobs need it

    logging.getLogger("datasets").setLevel(logging.ERROR)
    names = datasets.get_dataset_config_names(str(image))
    config = source.config or datasets.get_dataset_default_config_name(str(image))
    if config is None:
        raise _refused(source, "config", f"missing, and {source.repository} has no default; use {_listed(names)}")
    if config not in names:
        raise _refused(source, "config", f"{config!r} is none of {source.repository}; use {_listed(names)}")
    builder = datasets.load_dataset_builder(str(image), config, cache_dir=str(image.with_name("cache")))
    for option in _CHANGES_ROWS:
        if (value := getattr(builder.config, option, None)) is not None:
            raise _refused(
                source,
                "config",
                f"{config!r} of {source.repository} reads its files with {option}: {value!r}, which is not done here; "
                "use another, or bring the rows into files of your own",
            )
    found: dict[str, list[str]] = {}
    for split, files in builder.config.data_files.items():
        outside = [file for file in files if not Path(file).is_relative_to(image)]
        if outside:
            raise ValueError(f"its card names {outside[0]}, which is not in it")
        found[str(split)] = sorted({Path(file).relative_to(image).as_posix() for file in files})
    return found


def _checked(source: HubSource, files: list[str], paths: Sequence[str]) -> list[str]:
    assert set(files) <= set(paths)
    unread = [path for path in files if not is_read(PurePosixPath(path))]
    if unread:
        raise _refused(
            source,
            "uri",
            f"{unread[0]} of {source.repository} is no JSONL, JSON, Parquet or Arrow; name files that are, or use the "
            f"Parquet files that the hub has made of them: {source.uri}/<config>/<split>, with revision: {_CONVERTED}",
        )
    return files


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    shown = ", ".join(list(names)[:_LISTED])
    return f"one of {shown}{', ...' if len(names) > _LISTED else ''}" if len(names) > 1 else shown


def _refused(source: HubSource, field: str, what: str) -> JobFailure:
    return JobFailure(Reason.INVALID_DATA, f"{source.field}.{field}: {what}")
