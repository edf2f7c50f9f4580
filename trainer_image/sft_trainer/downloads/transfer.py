"""One source into its folder: file by file, several at once, each from where an earlier attempt stopped.

In: a source, and by a subclass what to take of it. Called by `stage` on node 0 alone. A node of an earlier attempt that
should be dead may still write to the same files: what counts is decided by the subclass's `_is_right`.
"""

import hashlib
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Generic, Protocol, TypeVar

from sft_trainer.datasets.made_once import FolderMeta, read_meta, write_meta
from sft_trainer.downloads.sources import Source
from sft_trainer.storage.folders import sync_path
from sftjob.failure import JobFailure, Reason, storage_reason
from sftjob.words import bytes_moved

_CONNECTIONS = 8
_TELL_SECONDS = 0.5

log = logging.getLogger(__name__)


class RemoteFile(Protocol):
    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int: ...


S = TypeVar("S", bound=Source)
F = TypeVar("F", bound=RemoteFile)


def is_whole(source: Source) -> bool:
    return read_meta(source.folder, FolderMeta) is not None


class Transfer(ABC, Generic[S, F]):
    refusals: tuple[type[Exception], ...] = ()
    """What the client raises, where that may be an OSError: it is not the storage's."""

    def __init__(self, source: S, on_detail: Callable[[str], None]) -> None:
        self._source = source
        self._on_detail = on_detail
        self._told = ""
        self._partial = source.folder / "partial"

    def run(self) -> None:
        """Returns when all that training needs lies in `source.files`. Raises JobFailure, or one of the `refusals`."""
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            files = self._take()
            sizes = {self._target(file).relative_to(self._source.folder).as_posix(): file.size for file in files}
            write_meta(self._source.folder, FolderMeta(bytes=sizes))
            shutil.rmtree(self._partial)
        except self.refusals:
            raise
        except OSError as error:
            raise JobFailure(
                storage_reason(error),
                f"spec.checkpoint.storage: {error.filename or self._source.folder}: {error.strerror}; "
                f"{self._source.uri} is downloaded there: make room, or give the pod's user write access",
            ) from error

    @abstractmethod
    def _take(self) -> Sequence[F]:
        """Chooses files and calls `_fetch` with them; returns all."""

    @abstractmethod
    def _fill(self, partial: Path, file: F) -> None:
        """Adds what is missing."""

    @abstractmethod
    def _content_id(self, file: F) -> str: ...

    @abstractmethod
    def _is_right(self, partial: Path, file: F) -> bool:
        """Asked once the file is filled."""

    @abstractmethod
    def _target(self, file: F) -> Path: ...

    @abstractmethod
    def _mangled(self, file: F) -> JobFailure:
        """A file has arrived twice and was not right."""

    def _fetch(self, files: Sequence[F]) -> None:
        pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="download")
        try:
            left = {pool.submit(self._fetch_one, file) for file in files}
            while left:
                done, left = wait(left, timeout=_TELL_SECONDS, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                self._tell(files)
        finally:
            # The first failure ends the process: what the others still do is of no use.
            pool.shutdown(wait=False, cancel_futures=True)

    def _fetch_one(self, file: F) -> None:
        target, partial = self._target(file), self._partial_of(file)
        if size_of(target) == file.size:
            return
        for _ in range(2):
            self._fill(partial, file)
            if self._is_right(partial, file):
                sync_path(partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(target)
                return
            log.warning("%s of %s did not arrive as it is listed", file.path, self._source.uri)
            partial.unlink()
        raise self._mangled(file)

    def _within(self, folder: Path, path: str) -> Path:
        # What a hub or a bucket names is not to be trusted with this machine's paths.
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise JobFailure(
                Reason.INVALID_CONFIGURATION,
                f"{self._source.field}.uri: {self._source.uri} lists a file {path!r}; name another place",
            )
        return folder / path

    def _partial_of(self, file: F) -> Path:
        """By path and content: what arrived of one version is never continued with another."""
        return self._partial / hashlib.sha256(f"{file.path}\0{self._content_id(file)}".encode()).hexdigest()[:32]

    def _tell(self, files: Sequence[F]) -> None:
        here = sum(size_of(self._target(file)) or size_of(self._partial_of(file)) or 0 for file in files)
        told = f"{self._source.uri}: {bytes_moved(here, sum(file.size for file in files))}"
        # What stands there while no byte arrives is why.
        if told != self._told:
            self._told = told
            self._on_detail(told)


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
