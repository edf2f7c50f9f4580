"""Checkpoints that are kept in a bucket; every node works on a copy in its own scratch.

    <storage>/step-<K>/...            its files, uploaded first
                      /manifest.json  created last: without it, it is no checkpoint
             /attempts/<N>/           ledgers and metrics, beside the claims

In: the folder that the ranks write and read. Called through the fence by rank 0, which publishes, and by the launcher
of node 0, which fetches before anything is read.
"""

import contextlib
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from sft_trainer.s3.bucket import Listed, Place
from sft_trainer.s3.download import fill
from sft_trainer.storage.best import best_first
from sft_trainer.storage.folders import first_difference
from sft_trainer.storage.records import FIELD, bucket_told
from sftjob import names
from sftjob.failure import JobFailure, storage_reason
from sftjob.manifest import CheckpointManifest

log = logging.getLogger(__name__)


class RemoteCheckpoints:
    """Every method raises JobFailure where the bucket can't be read or written."""

    def __init__(self, uri: str) -> None:
        self._place = Place(uri)

    def manifests(self) -> dict[int, CheckpointManifest | None]:
        """By step; None for one that can't be read."""
        found: dict[int, CheckpointManifest | None] = {}
        for step in sorted(self._folders()):
            text = self._manifest(step)
            if text is None:
                continue
            try:
                found[step] = CheckpointManifest.from_json(text)
            except ValidationError:
                found[step] = None
        return found

    def publish(self, folder: Path, manifest: CheckpointManifest, *, check: Callable[[], None]) -> None:
        """Raises FileExistsError rather than replace a checkpoint."""
        if self._manifest(manifest.step) is not None:
            raise FileExistsError(f"{self._place.uri}/{_key(manifest.step)} exists")
        with bucket_told(FIELD, self._place):
            for entry in manifest.files:
                self._place.upload(_key(manifest.step, entry.path), folder / entry.path, before_end=check)
            check()
            if not self._place.create(_key(manifest.step, names.MANIFEST), (folder / names.MANIFEST).read_bytes()):
                raise FileExistsError(f"{self._place.uri}/{_key(manifest.step)} exists")

    def amend(self, manifest: CheckpointManifest) -> None:
        with bucket_told(FIELD, self._place):
            self._place.replace(_key(manifest.step, names.MANIFEST), manifest.to_json(indent=2).encode())

    def set_aside(self, step: int, *, attempt: int) -> None:
        """It is no checkpoint any more; its manifest stays under another name until the step is saved again."""
        text = self._manifest(step)
        with bucket_told(FIELD, self._place):
            if text is not None:
                self._place.replace(_key(step, names.corrupt(names.MANIFEST, attempt=attempt)), text.encode())
            self._place.delete([_key(step, names.MANIFEST)])

    def delete(self, step: int) -> None:
        with bucket_told(FIELD, self._place):
            # The manifest first: what has one is always whole.
            self._place.delete([_key(step, names.MANIFEST)])
            self._place.delete([one.path for one in self._place.listed(_key(step))])

    def remove_unpublished(self) -> None:
        """What earlier attempts did not live to publish."""
        for step in self._folders():
            if self._manifest(step) is None:
                self.delete(step)

    def tell(self, storage: Path, *, attempt: int) -> None:
        """What this node has written down of its attempt so far, in files that no other attempt writes."""
        folder = names.attempt_folder(storage, attempt)
        events = (storage / names.TENSORBOARD).glob(f"*{names.event_suffix(attempt)}")
        with bucket_told(FIELD, self._place):
            for path in sorted([*folder.glob("*.jsonl"), *folder.glob(names.STACKS), *events]):
                self._place.replace(path.relative_to(storage).as_posix(), path.read_bytes())

    def tell_trackio(self, storage: Path) -> None:
        """Its databases, which all attempts share: the caller has read the fence.

        One that can't be copied stays here, and what is trained goes on without it.
        """
        with bucket_told(FIELD, self._place):
            for path in sorted((storage / names.TRACKIO).rglob("*.db")):
                try:
                    content = _snapshot(path)
                except (sqlite3.Error, OSError) as error:
                    log.warning("%s is not in %s: %s", path, self._place.uri, error)
                else:
                    self._place.replace(path.relative_to(storage).as_posix(), content)

    def fetch(self, storage: Path, *, attempt: int, with_best: bool, on_detail: Callable[[str], None]) -> None:
        """Makes the copy in `storage` right: the newest checkpoint that verifies, and newer ones as they are, so that
        rank 0 finds and tells what is wrong with them; the one whose weights it says were exported, and `with_best`
        the best that verifies. All others go: what counts is in the bucket."""
        try:
            self._fetch(storage, attempt=attempt, with_best=with_best, on_detail=on_detail)
        except OSError as error:
            raise JobFailure(
                storage_reason(error),
                f"{FIELD}: {error.filename or storage}: {error.strerror}; checkpoints of {self._place.uri} are fetched "
                f"into {storage}: make room there, or give the pod's user write access",
            ) from error

    def _fetch(self, storage: Path, *, attempt: int, with_best: bool, on_detail: Callable[[str], None]) -> None:
        storage.mkdir(parents=True, exist_ok=True)
        manifests, are_whole = self.manifests(), dict[int, bool]()

        def bring(step: int) -> bool:
            """Whether it verifies."""
            if step not in are_whole:
                are_whole[step] = self._bring(storage, step, manifests[step], attempt=attempt, on_detail=on_detail)
            return are_whole[step]

        newest = next((step for step in sorted(manifests, reverse=True) if bring(step)), -1)
        final = manifests.get(newest)
        if final and final.exported_step in manifests:
            bring(final.exported_step)
        if with_best:
            next(filter(bring, best_first(manifests)), None)
        self._fetch_told(storage, attempt=attempt, on_detail=on_detail)
        for path in storage.iterdir():
            found = names.checkpoint_step(path.name)
            if found is None:
                continue
            is_newer = found in manifests and found > newest
            if not (is_newer or are_whole.get(found, False)):
                shutil.rmtree(path)

    def _fetch_told(self, storage: Path, *, attempt: int, on_detail: Callable[[str], None]) -> None:
        """What earlier attempts have told that this one goes on with: their metrics, and trackio's databases."""
        # With their journals: those of a database that is replaced are not the new one's.
        shutil.rmtree(storage / names.TRACKIO, ignore_errors=True)
        with bucket_told(FIELD, self._place):
            metrics = {names.metrics(Path(), number).as_posix() for number in range(1, attempt)}
            for one in [*self._place.listed(names.ATTEMPTS), *self._place.listed(names.TRACKIO)]:
                if one.path in metrics or one.path.startswith(f"{names.TRACKIO}/"):
                    target = storage / one.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._download(one, target, on_detail)

    def _bring(
        self,
        storage: Path,
        step: int,
        manifest: CheckpointManifest | None,
        *,
        attempt: int,
        on_detail: Callable[[str], None],
    ) -> bool:
        folder = storage / names.checkpoint_folder(step)
        if manifest and _is_here(folder, manifest):
            return True
        self._fetch_one(folder, step, attempt=attempt, on_detail=on_detail)
        return manifest is not None and _is_here(folder, manifest)

    def _fetch_one(self, folder: Path, step: int, *, attempt: int, on_detail: Callable[[str], None]) -> None:
        temporary = folder.with_name(names.temporary(folder.name, attempt=attempt))
        for leftover in (folder, temporary):
            shutil.rmtree(leftover, ignore_errors=True)
        with bucket_told(FIELD, self._place):
            for one in self._place.listed(_key(step)):
                target = temporary / one.path.removeprefix(f"{_key(step)}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._download(one, target, on_detail)
        temporary.rename(folder)

    def _download(self, one: Listed, target: Path, on_detail: Callable[[str], None]) -> None:
        with target.open("wb") as file:
            on_detail(f"{self._place.uri}/{one.path}: {one.size / 1e6:.0f} MB")
            fill(file, one, self._place, on_detail=on_detail)

    def _folders(self) -> list[int]:
        with bucket_told(FIELD, self._place):
            names_ = self._place.folders("")
        return [step for name in names_ if (step := names.checkpoint_step(name)) is not None]

    def _manifest(self, step: int) -> str | None:
        with bucket_told(FIELD, self._place):
            content = self._place.read(_key(step, names.MANIFEST))
        return None if content is None else content.decode(errors="replace")


def _is_here(folder: Path, manifest: CheckpointManifest) -> bool:
    try:
        here = CheckpointManifest.from_json((folder / names.MANIFEST).read_text())
    except (FileNotFoundError, ValidationError):
        return False
    return here == manifest and first_difference(folder, manifest.files) is None


def _snapshot(database: Path) -> bytes:
    """Of a moment, though a rank may be writing."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, database.name)
        with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(sqlite3.connect(copy)) as to:
            source.backup(to)
        return copy.read_bytes()


def _key(step: int, path: str = "") -> str:
    return f"{names.checkpoint_folder(step)}/{path}".rstrip("/")
