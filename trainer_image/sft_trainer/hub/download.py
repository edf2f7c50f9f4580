"""One source from the hub into its folder: file by file, several at once, each from where an earlier attempt stopped.

In: a source and the commit to take. Called by `stage` on node 0 alone. A node of an earlier attempt that should be dead
may still write to the same files, which is why one counts only when its content has the hash that the hub lists.

`http_get` is the library's own. What it has around it, `hf_hub_download`, begins a file anew after a restart: in 2.4
the unfinished part is named by the process.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import build_hf_headers

from sft_trainer.datasets.made_once import FolderMeta, read_meta, write_meta
from sft_trainer.hub.patience import Patience, asked
from sft_trainer.hub.refusals import REFUSALS, refusal
from sft_trainer.hub.sources import HubSource
from sft_trainer.hub.wanted import TEMPLATES, data_files, small_files, weight_files
from sft_trainer.storage.folders import sync_path
from sftjob.failure import JobFailure, Reason, storage_reason

_CONNECTIONS = 8
_REQUEST_SECONDS = 30.0
_TELL_SECONDS = 0.5
_BLOCK_BYTES = 8 << 20

log = logging.getLogger(__name__)


class Snapshot(FolderMeta):
    """`meta.json` of a source that is whole."""

    commit: str


def is_whole(source: HubSource) -> bool:
    return read_meta(source.folder, Snapshot) is not None


def commit_of(source: HubSource, *, on_detail: Callable[[str], None]) -> str:
    """What its revision stands for now. Raises JobFailure."""

    def ask() -> str:
        found = _api().repo_info(source.repository, repo_type=source.kind, revision=source.revision)
        return str(found.sha)

    try:
        return asked(ask, on_detail=on_detail)
    except REFUSALS as error:
        raise refusal(source, error) from error


def download(source: HubSource, commit: str, *, on_detail: Callable[[str], None]) -> None:
    """Returns when all that training needs lies in `source.files`. Raises JobFailure."""
    if is_whole(source):
        return
    try:
        _Download(source, commit, on_detail).run()
    except REFUSALS as error:
        raise refusal(source, error) from error
    except OSError as error:
        raise JobFailure(
            storage_reason(error),
            f"spec.checkpoint.storage: {error.filename or source.folder}: {error.strerror}; "
            f"{source.uri} is downloaded there: make room, or give the pod's user write access",
        ) from error


class _Download:
    def __init__(self, source: HubSource, commit: str, on_detail: Callable[[str], None]) -> None:
        self._source = source
        self._commit = commit
        self._on_detail = on_detail
        self._told = ""
        self._partial = source.folder / "partial"
        # Packed, a file could not be continued in its middle.
        self._headers = build_hf_headers() | {"Accept-Encoding": "identity"}

    def run(self) -> None:
        self._partial.mkdir(parents=True, exist_ok=True)
        files = self._data() if self._source.kind == "dataset" else self._model()
        sizes = {self._target(file).relative_to(self._source.folder).as_posix(): file.size for file in files}
        write_meta(self._source.folder, Snapshot(bytes=sizes, commit=self._commit))
        shutil.rmtree(self._partial)

    def _model(self) -> list[RepoFile]:
        found = self._listed("")
        if any(isinstance(entry, RepoFolder) and entry.path == TEMPLATES for entry in found):
            found += self._listed(TEMPLATES)
        listing = {entry.path: entry for entry in found if isinstance(entry, RepoFile)}
        small = small_files(listing)
        self._fetch(small)
        weights = weight_files(self._source, listing) if self._source.takes_weights else []
        self._fetch(small + weights)
        return small + weights

    def _data(self) -> list[RepoFile]:
        repository, path = self._source.repository, self._source.path

        def ask() -> list[RepoFile | RepoFolder]:
            return _api().get_paths_info(repository, [path], revision=self._commit, repo_type=self._source.kind)

        found = asked(ask, on_detail=self._on_detail)
        is_folder = any(isinstance(entry, RepoFolder) for entry in found)
        files = data_files(self._source, self._listed(path) if is_folder else found)
        self._fetch(files)
        return files

    def _listed(self, folder: str) -> list[RepoFile | RepoFolder]:
        """What lies directly in a folder of the repository."""
        repository, kind = self._source.repository, self._source.kind

        def ask() -> list[RepoFile | RepoFolder]:
            return list(_api().list_repo_tree(repository, folder or None, revision=self._commit, repo_type=kind))

        return asked(ask, on_detail=self._on_detail)

    def _fetch(self, files: Sequence[RepoFile]) -> None:
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

    def _fetch_one(self, file: RepoFile) -> None:
        target, partial = self._target(file), self._partial_of(file)
        if _size(target) == file.size:
            return
        for _ in range(2):
            self._fill(partial, file)
            if _content_is(partial, file):
                sync_path(partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(target)
                return
            log.warning("%s of %s did not arrive as it is listed", file.path, self._source.uri)
            partial.unlink()
        raise JobFailure(
            Reason.HUB_UNREACHABLE,
            f"{self._source.field}.uri: {file.path} of {self._source.uri} arrived twice with other content than is "
            "listed; look for a proxy or a mirror (HF_ENDPOINT) that changes it",
        )

    def _fill(self, partial: Path, file: RepoFile) -> None:
        """Appends what is missing."""
        url = hf_hub_url(self._source.repository, file.path, repo_type=self._source.kind, revision=self._commit)
        patience = Patience(self._on_detail)
        while True:
            present = _size(partial) or 0
            if present > file.size:
                partial.unlink()
                present = 0
            if present == file.size and partial.exists():
                return
            try:
                with partial.open("ab") as opened:
                    # On a redirect to another host the client leaves the token out.
                    http_get(url, opened, resume_size=present, headers=self._headers)
                return
            except REFUSALS as error:
                if (_size(partial) or 0) > present:
                    patience.renew()
                patience.wait(error)

    def _target(self, file: RepoFile) -> Path:
        path = PurePosixPath(file.path)
        # What a hub names is not to be trusted with this machine's paths.
        if path.is_absolute() or ".." in path.parts:
            raise JobFailure(
                Reason.INVALID_CONFIGURATION,
                f"{self._source.field}.uri: {self._source.uri} lists a file {file.path!r}; name another repository",
            )
        return self._source.files / path

    def _partial_of(self, file: RepoFile) -> Path:
        """By path and content: what arrived of one version is never continued with another."""
        return self._partial / hashlib.sha256(f"{file.path}\0{_content_id(file)}".encode()).hexdigest()[:32]

    def _tell(self, files: Sequence[RepoFile]) -> None:
        here = sum(_size(self._target(file)) or _size(self._partial_of(file)) or 0 for file in files)
        told = f"{self._source.uri}: {_amount(here, sum(file.size for file in files))}"
        # What stands there while no byte arrives is why.
        if told != self._told:
            self._told = told
            self._on_detail(told)


def _api() -> HfApi:
    # Else the library waits for ever where it takes no timeout.
    get_session().timeout = _REQUEST_SECONDS
    return HfApi()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _content_id(file: RepoFile) -> str:
    """The sha256 of a large file; of another the id that git gives it."""
    return file.lfs.sha256 if file.lfs else file.blob_id


def _content_is(path: Path, file: RepoFile) -> bool:
    hashed = hashlib.sha256() if file.lfs else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            hashed.update(block)
    return hashed.hexdigest() == _content_id(file)


def _amount(here: int, total: int) -> str:
    unit, name = next(
        (u, n) for u, n in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes")) if total >= u or u == 1
    )
    digits = 1 if unit > 1 else 0
    return f"{here / unit:.{digits}f} of {total / unit:.{digits}f} {name}"
