"""The small texts in a job's storage that decide who may do what: claims, `run.json`, `latest`.

They lie where the storage is, in a folder or in a bucket, and are created and replaced whole there. Called by the
fence, and by whoever publishes checkpoints.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from sft_trainer.s3.bucket import BucketFailure, Place
from sft_trainer.s3.refusals import write_refusal
from sft_trainer.storage.folders import sync_path, write_atomically
from sftjob.failure import JobFailure, Reason, storage_reason

FIELD = "spec.checkpoint.storage"


class Records(Protocol):
    """Every method raises JobFailure where the storage can't be read or written."""

    @property
    def name(self) -> str:
        """For messages."""

    def read(self, key: str) -> str | None:
        """None where there is none."""

    def create(self, key: str, text: str) -> bool:
        """False where there is one already. Of several who try, one gets True."""

    def begin(self, key: str, text: str) -> None:
        """Where there is none yet: whole, or not at all."""

    def replace(self, key: str, text: str) -> None: ...

    def remove(self, key: str) -> None:
        """Where there is one."""

    def folders(self, key: str) -> list[str]:
        """Names below a key."""


class FolderRecords:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def name(self) -> str:
        return str(self._folder)

    def read(self, key: str) -> str | None:
        with folder_told(self._folder):
            try:
                return (self._folder / key).read_text(errors="replace")
            except FileNotFoundError:
                return None

    def create(self, key: str, text: str) -> bool:
        path = self._folder / key
        with folder_told(self._folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            sync_path(path.parent)
        return True

    def begin(self, key: str, text: str) -> None:
        # A folder can't do both, be exclusive and whole: whoever comes second here sees it when he looks again.
        if self.read(key) is None:
            self.replace(key, text)

    def replace(self, key: str, text: str) -> None:
        with folder_told(self._folder):
            write_atomically(self._folder / key, text)

    def remove(self, key: str) -> None:
        with folder_told(self._folder):
            (self._folder / key).unlink(missing_ok=True)

    def folders(self, key: str) -> list[str]:
        with folder_told(self._folder):
            try:
                return os.listdir(self._folder / key)  # noqa: PTH208 - names only, and one call
            except FileNotFoundError:
                return []


class BucketRecords:
    def __init__(self, uri: str) -> None:
        self._place = Place(uri)

    @property
    def name(self) -> str:
        return self._place.uri

    def read(self, key: str) -> str | None:
        with bucket_told(FIELD, self._place):
            content = self._place.read(key)
        return None if content is None else content.decode()

    def create(self, key: str, text: str) -> bool:
        with bucket_told(FIELD, self._place):
            is_ours = self._place.create(key, text.encode())
            # A store that does not know the condition takes this too.
            if is_ours and self._place.create(key, b"refuse this"):
                raise JobFailure(
                    Reason.INVALID_CONFIGURATION,
                    f"{FIELD}: the store of {self._place.uri} replaced an object that it was asked to keep "
                    "(If-None-Match: *), so nothing would keep two attempts from training at once; name a bucket of a "
                    "store with conditional writes, or a pvc:// volume",
                )
        return is_ours

    def begin(self, key: str, text: str) -> None:
        self.create(key, text)

    def replace(self, key: str, text: str) -> None:
        with bucket_told(FIELD, self._place):
            self._place.replace(key, text.encode())

    def remove(self, key: str) -> None:
        with bucket_told(FIELD, self._place):
            self._place.delete([key])

    def folders(self, key: str) -> list[str]:
        with bucket_told(FIELD, self._place):
            return self._place.folders(key)


@contextmanager
def folder_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = storage_reason(error)
        remedy = "give the pod's user write access to it, check the volume, or name another folder"
        if reason is Reason.STORAGE_FULL:
            remedy = "free some room there, or enlarge the volume"
        raise JobFailure(reason, f"{FIELD}: {folder} can't be read or written ({error.strerror}); {remedy}") from error


@contextmanager
def bucket_told(field: str, place: Place) -> Iterator[None]:
    try:
        yield
    except BucketFailure as failure:
        raise write_refusal(field, place, failure) from failure
