"""What a plan takes from a hub or a bucket, and where it lies once it is downloaded. Pure.

Called by the launcher, which downloads if there is anything, and by whoever turns a plan into the Trainer's options.

    <storage>/cache/hub/model/files/      the repository's files, or the objects, as far as they are needed
                             /partial/    what has arrived so far of those that aren't whole
                             /meta.json   written last: every file's size
                       /tokenizer/ /data-0/ /data-1/ ...
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sftjob import names
from sftjob.plan import LaunchPlan
from sftjob.sources import DatasetSpec, UriSource

_DATASETS = f"{names.HUB}datasets/"
_MAIN = "main"
_FILES = "files"

Revision = tuple[str, str, str]
"""Kind, repository and revision: what stands for one commit."""


@dataclass(frozen=True)
class _Source:
    """One field of the spec that names something to download."""

    field: str
    """`spec.model.loadFrom`"""
    uri: str
    kind: Literal["model", "dataset"]
    takes_weights: bool
    folder: Path
    """Of this source alone."""

    @property
    def files(self) -> Path:
        return self.folder / _FILES


@dataclass(frozen=True)
class HubSource(_Source):
    """A hub's repository, or something in one."""

    revision: str
    """As the user names it."""
    repository: str
    """`<owner>/<name>`"""
    path: str
    """Of a file or folder in the repository; empty is the whole."""
    config: str | None = None
    """Of a whole dataset, as the next; None is its default."""
    split: str | None = None
    """None is train."""

    @property
    def of(self) -> Revision:
        return self.kind, self.repository, self.revision

    @property
    def local(self) -> str:
        """What it is for the Trainer: a model's folder, or a dataset's file, or the folder of its files alone."""
        return str(self.files / self.path)

    @property
    def origin(self) -> str:
        """For whoever asks what a model was made of."""
        return self.repository


@dataclass(frozen=True)
class BucketSource(_Source):
    """An object in a bucket, or those below a prefix."""

    @property
    def name(self) -> str:
        return self.uri.rstrip("/").rpartition("/")[2]

    @property
    def local(self) -> str:
        """As of a hub. A dataset that is one object keeps its name, which tells what it is."""
        return str(self.files / self.name) if self.kind == "dataset" else str(self.files)

    @property
    def origin(self) -> str:
        return self.uri


Source = HubSource | BucketSource


def sources_of(plan: LaunchPlan) -> list[Source]:
    """Each once, in the order in which they are downloaded."""
    found: dict[_Identity, Source] = {}
    for name, (field, spec) in _named(plan).items():
        folder = Path(plan.storage) / names.CACHE / names.DOWNLOADS / name
        if spec.uri.startswith(names.HUB):
            found.setdefault(_identity(spec), hub_source(field, spec, folder=folder))
        elif spec.uri.startswith(names.S3):
            found.setdefault(_identity(spec), _bucket_source(field, spec, folder=folder))
    return list(found.values())


def source_of(plan: LaunchPlan, spec: UriSource | DatasetSpec | None) -> Source | None:
    """None for what is neither of a hub nor in a bucket."""
    return next((one for one in sources_of(plan) if spec and _source_identity(one) == _identity(spec)), None)


def local_path(plan: LaunchPlan, spec: UriSource | DatasetSpec) -> str:
    """Where something that the spec names lies on this node."""
    source = source_of(plan, spec)
    return source.local if source else plan.path(spec.uri)


_Identity = tuple[str, str, str | None, str | None]


def _identity(spec: UriSource | DatasetSpec) -> _Identity:
    parts = (spec.config, spec.split) if isinstance(spec, DatasetSpec) else (None, None)
    return spec.uri, spec.revision or _MAIN, *parts


def _source_identity(source: Source) -> _Identity:
    if isinstance(source, HubSource):
        return source.uri, source.revision, source.config, source.split
    return source.uri, _MAIN, None, None


def _named(plan: LaunchPlan) -> dict[str, tuple[str, UriSource | DatasetSpec]]:
    """Everything that is read, with its field, by the name of the folder that is its own if it is downloaded.

    Nothing for a job with a script, which reads by itself.
    """
    model, data = plan.spec.model, plan.spec.data
    named: dict[str, tuple[str, UriSource | DatasetSpec]] = {}
    if model and model.load_from:
        named["model"] = ("spec.model.loadFrom", model.load_from)
    if model and model.tokenizer:
        named["tokenizer"] = ("spec.model.tokenizer", model.tokenizer)
    return named | {f"data-{index}": item for index, item in enumerate(data.sources.items() if data else ())}


def hub_source(field: str, spec: UriSource | DatasetSpec, *, folder: Path) -> HubSource:
    """One that begins with hf://. With its weights where `field` is the model that a job trains."""
    is_data = spec.uri.startswith(_DATASETS)
    config, split = (spec.config, spec.split) if isinstance(spec, DatasetSpec) else (None, None)
    owner, name, *path = spec.uri.removeprefix(_DATASETS if is_data else names.HUB).rstrip("/").split("/")
    return HubSource(
        field=field,
        uri=spec.uri,
        revision=spec.revision or _MAIN,
        kind="dataset" if is_data else "model",
        repository=f"{owner}/{name}",
        path="/".join(path),
        config=config,
        split=split,
        takes_weights=_takes_weights(field),
        folder=folder,
    )


def _bucket_source(field: str, spec: UriSource | DatasetSpec, *, folder: Path) -> BucketSource:
    return BucketSource(
        field=field,
        uri=spec.uri,
        kind="dataset" if isinstance(spec, DatasetSpec) else "model",
        takes_weights=_takes_weights(field),
        folder=folder,
    )


def _takes_weights(field: str) -> bool:
    return field == "spec.model.loadFrom"
