"""What a plan takes from a hub, and where it lies once it is downloaded. Pure.

Called by the launcher, which downloads if there is anything, and by whoever turns a plan into the Trainer's options.

    <storage>/cache/hub/model/files/      the repository's files, as far as they are needed
                             /partial/    what has arrived so far of those that aren't whole
                             /meta.json   written last: the commit, and every file's size
                       /tokenizer/ /data-0/ /data-1/ ...
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sftjob import names
from sftjob.plan import LaunchPlan
from sftjob.spec import DatasetSpec, UriSource

_DATASETS = f"{names.HUB}datasets/"
_MAIN = "main"
_FILES = "files"

Revision = tuple[str, str, str]
"""Kind, repository and revision: what stands for one commit."""


@dataclass(frozen=True)
class HubSource:
    """One field of the spec that names a hub's repository, or something in one."""

    field: str
    """`spec.model.loadFrom`"""
    uri: str
    revision: str
    """As the user names it."""
    kind: Literal["model", "dataset"]
    repository: str
    """`<owner>/<name>`"""
    path: str
    """Of a file or folder in the repository; empty is the whole."""
    takes_weights: bool
    folder: Path
    """Of this source alone."""

    @property
    def of(self) -> Revision:
        return self.kind, self.repository, self.revision

    @property
    def files(self) -> Path:
        return self.folder / _FILES

    @property
    def local(self) -> str:
        """What it is for the Trainer: a model's folder, or a dataset's file or folder."""
        return str(self.files / self.path)


def hub_sources(plan: LaunchPlan) -> list[HubSource]:
    """Each once, in the order in which they are downloaded."""
    found: dict[tuple[str, str], HubSource] = {}
    for folder, (field, source) in _named(plan).items():
        if source.uri.startswith(names.HUB):
            one = source_of(field, source, folder=Path(plan.storage) / names.CACHE / names.DOWNLOADS / folder)
            found.setdefault((one.uri, one.revision), one)
    return list(found.values())


def hub_source(plan: LaunchPlan, source: UriSource | DatasetSpec | None) -> HubSource | None:
    """None for what is somewhere else."""
    wanted = (source.uri, source.revision or _MAIN) if source else None
    return next((one for one in hub_sources(plan) if (one.uri, one.revision) == wanted), None)


def local_path(plan: LaunchPlan, source: UriSource | DatasetSpec) -> str:
    """Where something that the spec names lies on this node."""
    of_hub = hub_source(plan, source)
    return of_hub.local if of_hub else plan.path(source.uri)


def _named(plan: LaunchPlan) -> dict[str, tuple[str, UriSource | DatasetSpec]]:
    """Everything that is read, with its field, by the name of the folder that is its own if it comes from a hub.

    Nothing for a job with a script, which reads by itself.
    """
    model, data = plan.spec.model, plan.spec.data
    named: dict[str, tuple[str, UriSource | DatasetSpec]] = {}
    if model and model.load_from:
        named["model"] = ("spec.model.loadFrom", model.load_from)
    if model and model.tokenizer:
        named["tokenizer"] = ("spec.model.tokenizer", model.tokenizer)
    return named | {f"data-{index}": item for index, item in enumerate(data.sources.items() if data else ())}


def source_of(field: str, source: UriSource | DatasetSpec, *, folder: Path) -> HubSource:
    """One that begins with hf://. With its weights where `field` is the model that a job trains."""
    is_data = source.uri.startswith(_DATASETS)
    owner, name, *path = source.uri.removeprefix(_DATASETS if is_data else names.HUB).rstrip("/").split("/")
    return HubSource(
        field=field,
        uri=source.uri,
        revision=source.revision or _MAIN,
        kind="dataset" if is_data else "model",
        repository=f"{owner}/{name}",
        path="/".join(path),
        takes_weights=field == "spec.model.loadFrom",
        folder=folder,
    )
