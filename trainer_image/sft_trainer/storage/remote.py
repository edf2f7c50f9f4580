"""Checkpoints that are kept in a bucket; every node works on a copy in its own scratch.

    <storage>/step-<K>/...            its files, uploaded by the ranks that wrote them
                      /manifest.json  created last: without it, it is no checkpoint
             /attempts/<N>/           ledgers and metrics, beside the claims

In: the folder that the ranks of this node write and read. Called through the fence by each rank, which uploads, by
rank 0, which publishes, and by each node's launcher, which fetches before anything is read.
"""

import contextlib
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from sft_trainer.s3.bucket import Listed, Place
from sft_trainer.s3.download import fill
from sft_trainer.storage.folders import first_difference
from sft_trainer.storage.records import FIELD, bucket_told
from sftjob import names
from sftjob.failure import JobFailure, Reason, storage_reason
from sftjob.manifest import CheckpointManifest
from sftjob.words import bytes_moved

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
            if text is not None:
                found[step] = _read(text)
        return found

    def manifest(self, step: int) -> CheckpointManifest | None:
        """None where there is none that can be read."""
        text = self._manifest(step)
        return None if text is None else _read(text)

    def upload(self, folder: Path, step: int, files: Sequence[str], *, check: Callable[[], None]) -> None:
        """Of a checkpoint that is not published yet. Raises FileExistsError rather than replace one."""
        if self._manifest(step) is not None:
            raise FileExistsError(f"{self._place.uri}/{_key(step)} exists")
        with bucket_told(FIELD, self._place):
            for path in files:
                self._place.upload(_key(step, path), folder / path, before_end=check)

    def publish(self, manifest: CheckpointManifest) -> None:
        """Its files are there. Raises FileExistsError rather than replace a checkpoint."""
        with bucket_told(FIELD, self._place):
            if not self._place.create(_key(manifest.step, names.MANIFEST), manifest.to_json(indent=2).encode()):
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
            for path in sorted([*folder.glob("*.jsonl"), *events]):
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

    def fetch_newest(self, storage: Path, *, attempt: int, on_detail: Callable[[str], None]) -> int | None:
        """Makes node 0's copy in `storage` right: the newest checkpoint that verifies, whose step is returned, and
        newer ones as they are, so that rank 0 finds and tells what is wrong with them; and what earlier attempts have
        told. All other checkpoints go: what counts is in the bucket."""
        manifests = self.manifests()

        def is_whole(step: int) -> bool:
            return self._fault_after_fetch(storage, step, manifests[step], attempt=attempt, on_detail=on_detail) is None

        with self._told_of_room(storage):
            newest = next(filter(is_whole, sorted(manifests, reverse=True)), None)
            _leave(storage, {step for step in manifests if newest is None or step >= newest}, attempt=attempt)
            self._fetch_told(storage, attempt=attempt, on_detail=on_detail)
        return newest

    def fetch_chosen(self, storage: Path, step: int | None, *, attempt: int, on_detail: Callable[[str], None]) -> None:
        """Makes another node's copy right: the checkpoint that node 0 has chosen, and no other one."""
        with self._told_of_room(storage):
            _leave(storage, {step}, attempt=attempt)
        if step is None:
            return
        fault = self.fetch(storage, step, attempt=attempt, on_detail=on_detail)
        if fault is not None:
            raise JobFailure(
                Reason.STORAGE_UNAVAILABLE,
                f"{FIELD}: {self._place.uri}/{_key(step)} was whole on node 0, and did not arrive so here ({fault}); "
                f"where that happens again, delete its {names.MANIFEST}, and the job goes on from the one before",
            )

    def fetch(self, storage: Path, step: int, *, attempt: int, on_detail: Callable[[str], None]) -> str | None:
        """Brings a checkpoint into the copy, where it isn't there whole; what is wrong with it, None if nothing."""
        with self._told_of_room(storage):
            return self._fault_after_fetch(storage, step, self.manifest(step), attempt=attempt, on_detail=on_detail)

    @contextlib.contextmanager
    def _told_of_room(self, storage: Path) -> Iterator[None]:
        try:
            storage.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise JobFailure(
                storage_reason(error),
                f"{FIELD}: {error.filename or storage}: {error.strerror}; checkpoints of {self._place.uri} are fetched "
                f"into {storage}: make room there, or give the pod's user write access",
            ) from error

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

    def _fault_after_fetch(
        self,
        storage: Path,
        step: int,
        manifest: CheckpointManifest | None,
        *,
        attempt: int,
        on_detail: Callable[[str], None],
    ) -> str | None:
        folder = storage / names.checkpoint_folder(step)
        if manifest and _fault(folder, manifest) is None:
            return None
        self._fetch_one(folder, step, attempt=attempt, on_detail=on_detail)
        return _fault(folder, manifest) if manifest else f"its {names.MANIFEST} can't be read"

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
            on_detail(f"{self._place.uri}/{one.path}: {bytes_moved(0, one.size)}")
            fill(file, one, self._place, on_detail=on_detail)

    def _folders(self) -> list[int]:
        with bucket_told(FIELD, self._place):
            names_ = self._place.folders("")
        return [step for name in names_ if (step := names.checkpoint_step(name)) is not None]

    def _manifest(self, step: int) -> str | None:
        with bucket_told(FIELD, self._place):
            content = self._place.read(_key(step, names.MANIFEST))
        return None if content is None else content.decode(errors="replace")


def _read(text: str) -> CheckpointManifest | None:
    try:
        return CheckpointManifest.from_json(text)
    except ValidationError:
        return None


def _fault(folder: Path, manifest: CheckpointManifest) -> str | None:
    """What is wrong with the copy of a checkpoint."""
    try:
        here = _read((folder / names.MANIFEST).read_text(errors="replace"))
    except FileNotFoundError:
        here = None
    return first_difference(folder, manifest.files) if here == manifest else f"{names.MANIFEST} is another one"


def _leave(storage: Path, steps: Collection[int | None], *, attempt: int) -> None:
    """Deletes all other checkpoints of the copy, and what earlier attempts did not live to finish there."""
    for path in storage.iterdir():
        step, writer = names.checkpoint_step(path.name), names.temporary_attempt(path.name)
        if (step is not None and step not in steps) or (writer is not None and writer < attempt):
            shutil.rmtree(path)


def _snapshot(database: Path) -> bytes:
    """Of a moment, though a rank may be writing."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, database.name)
        with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(sqlite3.connect(copy)) as to:
            source.backup(to)
        return copy.read_bytes()


def _key(step: int, path: str = "") -> str:
    return f"{names.checkpoint_folder(step)}/{path}".rstrip("/")
