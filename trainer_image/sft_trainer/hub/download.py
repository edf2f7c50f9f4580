"""One source from the hub: which files, and each of them by ranges until its content has the hash that the hub lists.

In: a source and the commit to take. Called by `downloads.stage`.

`http_get` is the library's own. What it has around it, `hf_hub_download`, begins a file anew after a restart: in 2.4
the unfinished part is named by the process.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import build_hf_headers

from sft_trainer.downloads.patience import Patience, asked
from sft_trainer.downloads.sources import HubSource
from sft_trainer.downloads.transfer import Transfer, is_whole, size_of
from sft_trainer.downloads.wanted import TEMPLATES, data_files, small_files, weight_files
from sft_trainer.hub.refusals import REFUSALS, is_passing, refusal
from sft_trainer.hub.splits import CARD, files_of_split
from sftjob.failure import JobFailure, Reason

_REQUEST_SECONDS = 30.0
_BLOCK_BYTES = 8 << 20


def commit_of(source: HubSource, *, on_detail: Callable[[str], None]) -> str:
    """What its revision stands for now. Raises JobFailure."""

    def ask() -> str:
        found = _api().repo_info(source.repository, repo_type=source.kind, revision=source.revision)
        return str(found.sha)

    try:
        return asked(ask, patience=_patience(on_detail))
    except REFUSALS as error:
        raise refusal(source, error) from error


def download(source: HubSource, commit: str, *, on_detail: Callable[[str], None]) -> None:
    """Returns when all that training needs lies in `source.files`. Raises JobFailure."""
    # Before the client is asked for anything: it has questions of its own.
    if is_whole(source):
        return
    try:
        _HubTransfer(source, commit, on_detail).run()
    except REFUSALS as error:
        raise refusal(source, error) from error


class _HubTransfer(Transfer[HubSource, RepoFile]):
    refusals = REFUSALS

    def __init__(self, source: HubSource, commit: str, on_detail: Callable[[str], None]) -> None:
        super().__init__(source, on_detail)
        self._commit = commit
        # Packed, a file could not be continued in its middle.
        self._headers = build_hf_headers() | {"Accept-Encoding": "identity"}

    def _take(self) -> Sequence[RepoFile]:
        if self._source.kind == "model":
            return self._model()
        return self._data() if self._source.path else self._split()

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

        found = asked(ask, patience=_patience(self._on_detail))
        if not found:
            raise JobFailure(
                Reason.INVALID_DATA,
                f"{self._source.field}.uri: there is nothing at {path} of {repository} at {self._source.revision}; "
                "name a file, or a folder of files",
            )
        files = [entry for entry in found if isinstance(entry, RepoFile)]
        if not files:
            below = [entry for entry in self._listed(path, recursive=True) if isinstance(entry, RepoFile)]
            listing = {entry.path.removeprefix(f"{path}/"): entry for entry in below}
            files = data_files(self._source, listing)
        self._fetch(files)
        return files

    def _split(self) -> list[RepoFile]:
        found = self._listed("", recursive=True)
        listing = {entry.path: entry for entry in found if isinstance(entry, RepoFile)}
        self._fetch([listing[path] for path in CARD if path in listing])
        files = [listing[path] for path in files_of_split(self._source, list(listing))]
        self._fetch(files)
        return files

    def _listed(self, folder: str, *, recursive: bool = False) -> list[RepoFile | RepoFolder]:
        """What lies in a folder of the repository: directly, or all of it."""
        repository, kind = self._source.repository, self._source.kind

        def ask() -> list[RepoFile | RepoFolder]:
            tree = _api().list_repo_tree(
                repository, folder or None, recursive=recursive, revision=self._commit, repo_type=kind
            )
            return list(tree)

        return asked(ask, patience=_patience(self._on_detail))

    def _fill(self, partial: Path, file: RepoFile) -> None:
        """Appends what is missing."""
        url = hf_hub_url(self._source.repository, file.path, repo_type=self._source.kind, revision=self._commit)
        patience = _patience(self._on_detail)
        while True:
            present = size_of(partial) or 0
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
                if (size_of(partial) or 0) > present:
                    patience.renew()
                patience.wait(error)

    def _target(self, file: RepoFile) -> Path:
        return self._within(self._source.files, file.path)

    def _content_id(self, file: RepoFile) -> str:
        """The sha256 of a large file; of another the id that git gives it."""
        return file.lfs.sha256 if file.lfs else file.blob_id

    def _is_right(self, partial: Path, file: RepoFile) -> bool:
        hashed = hashlib.sha256() if file.lfs else hashlib.sha1(f"blob {partial.stat().st_size}\0".encode())
        with partial.open("rb") as opened:
            while block := opened.read(_BLOCK_BYTES):
                hashed.update(block)
        return hashed.hexdigest() == self._content_id(file)

    def _mangled(self, file: RepoFile) -> JobFailure:
        return JobFailure(
            Reason.HUB_UNREACHABLE,
            f"{self._source.field}.uri: {file.path} of {self._source.uri} arrived twice with other content than is "
            "listed; look for a proxy or a mirror (HF_ENDPOINT) that changes it",
        )


def _patience(on_detail: Callable[[str], None]) -> Patience:
    return Patience("the hub", on_detail, refusals=REFUSALS, is_passing=is_passing)


def _api() -> HfApi:
    # Else the library waits for ever where it takes no timeout.
    get_session().timeout = _REQUEST_SECONDS
    return HfApi()
