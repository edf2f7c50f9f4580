"""The place of an output, in a folder or in a bucket: whose it is, what of it is published, and how it gets there.

A folder appears by one rename. A bucket has none: there the files come first and the manifest last, and what has no
manifest is no output. While files arrive, an object with the owner's name keeps other jobs away.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from sft_trainer.s3.bucket import Place
from sft_trainer.storage.folders import discard, first_difference, publish, write_atomically
from sft_trainer.storage.records import bucket_told
from sftjob import names
from sftjob.manifest import ExportManifest, ExportOwner, FileEntry
from sftjob.plan import LaunchPlan
from sftjob.words import bytes_moved


class Output(Protocol):
    """A bucket's raises JobFailure where it can't be reached."""

    @property
    def name(self) -> str:
        """For messages."""

    def is_empty(self) -> bool: ...

    def owner_uid(self) -> str | None:
        """Of the job that has published it, or has begun to; None where nothing tells."""

    def manifest(self) -> ExportManifest | None:
        """None where there is none that can be read."""

    def holds(self, manifest: ExportManifest) -> bool:
        """All its files are there and whole."""

    def publish(
        self,
        temporary: Path,
        manifest: ExportManifest,
        *,
        check: Callable[[], None],
        on_detail: Callable[[str], None],
    ) -> None:
        """Takes the files from `temporary`, which is gone then. `check` is the fence; `on_detail` hears how far it
        is, and may raise to stop it.

        Raises FileExistsError rather than replace what is another's.
        """


def output_at(plan: LaunchPlan, uri: str) -> Output:
    field = next(path for path, place in plan.spec.places.items() if place == uri and path.startswith("spec.output"))
    return BucketOutput(uri, field=field) if uri.startswith(names.S3) else FolderOutput(Path(plan.path(uri)))


class FolderOutput:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def name(self) -> str:
        return str(self._folder)

    def is_empty(self) -> bool:
        try:
            return not os.listdir(self._folder)  # noqa: PTH208 - names only, and one call
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            return False

    def owner_uid(self) -> str | None:
        manifest = self.manifest()
        return manifest.owner_uid if manifest else None

    def manifest(self) -> ExportManifest | None:
        try:
            return ExportManifest.from_json((self._folder / names.EXPORT_MANIFEST).read_text())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None

    def holds(self, manifest: ExportManifest) -> bool:
        return first_difference(self._folder, manifest.files) is None

    def publish(
        self,
        temporary: Path,
        manifest: ExportManifest,
        *,
        check: Callable[[], None],
        on_detail: Callable[[str], None],  # noqa: ARG002 - one rename has no parts
    ) -> None:
        write_atomically(temporary / names.EXPORT_MANIFEST, manifest.to_json(indent=2))
        check()
        publish(temporary, self._folder)


class BucketOutput:
    def __init__(self, uri: str, *, field: str) -> None:
        self._place = Place(uri)
        self._field = field

    @property
    def name(self) -> str:
        return self._place.uri

    def is_empty(self) -> bool:
        with bucket_told(self._field, self._place):
            return not self._place.listed()

    def owner_uid(self) -> str | None:
        manifest = self.manifest()
        if manifest:
            return manifest.owner_uid
        with bucket_told(self._field, self._place):
            content = self._place.read(names.EXPORT_OWNER)
        try:
            return ExportOwner.from_json(content).owner_uid if content is not None else None
        except ValidationError:
            return None

    def manifest(self) -> ExportManifest | None:
        with bucket_told(self._field, self._place):
            content = self._place.read(names.EXPORT_MANIFEST)
        try:
            return ExportManifest.from_json(content) if content is not None else None
        except ValidationError:
            return None

    def holds(self, manifest: ExportManifest) -> bool:
        """By size: the store keeps what it has taken, and the manifest came last."""
        with bucket_told(self._field, self._place):
            sizes = {one.path: one.size for one in self._place.listed()}
        return all(sizes.get(entry.path) == entry.bytes for entry in manifest.files)

    def publish(
        self,
        temporary: Path,
        manifest: ExportManifest,
        *,
        check: Callable[[], None],
        on_detail: Callable[[str], None],
    ) -> None:
        uid, place = manifest.owner_uid, self._place
        if self.manifest() or (not self.is_empty() and self.owner_uid() != uid):
            raise FileExistsError(f"{self.name} is not empty")
        with bucket_told(self._field, place):
            check()
            created = place.create(names.EXPORT_OWNER, ExportOwner(owner_uid=uid).to_json().encode())
            if not created and self.owner_uid() != uid:
                raise FileExistsError(f"{self.name} was taken by another job")
            place.delete([one.path for one in place.listed() if one.path != names.EXPORT_OWNER])
            for entry in manifest.files:
                place.upload(
                    entry.path, temporary / entry.path, before_part=self._told(entry, on_detail), before_end=check
                )
            check()
            if not place.create(names.EXPORT_MANIFEST, manifest.to_json(indent=2).encode()):
                raise FileExistsError(f"{self.name}/{names.EXPORT_MANIFEST} appeared")
            place.delete([names.EXPORT_OWNER])
        discard(temporary)

    def _told(self, entry: FileEntry, on_detail: Callable[[str], None]) -> Callable[[int], None]:
        return lambda sent: on_detail(f"{self.name}/{entry.path}: {bytes_moved(sent, entry.bytes)}")
