"""Which checkpoints a storage folder holds, which of them are whole, and which may go.

A checkpoint is a folder `step-<K>` whose `manifest.json` lists every file with size and hash. Where the storage is a
bucket, what lies there counts (`remote`), and the folder is the copy that this node works on: of a checkpoint that was
fetched it has all files, of one that was saved those of this node's ranks. Called by the ranks and by the launchers.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sft_trainer.storage.best import best_first
from sft_trainer.storage.fence import Fence
from sft_trainer.storage.folders import discard, first_difference, hash_files, publish, write_atomically
from sft_trainer.storage.records import folder_told
from sftjob import names
from sftjob.manifest import CheckpointManifest, FileEntry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that verifies, and the newer ones that do not, with what is wrong with each."""

    manifest: CheckpointManifest | None
    corrupt: dict[int, str]


def find_newest(storage: Path) -> Found:
    corrupt: dict[int, str] = {}
    for step in sorted(_steps(storage), reverse=True):
        manifest, fault = _read(storage, step)
        if manifest and not (fault := _difference(storage, manifest)):
            return Found(manifest, corrupt)
        corrupt[step] = fault
    return Found(None, corrupt)


def find_best(storage: Path) -> CheckpointManifest | None:
    """Of those that verify, the one with the lowest evaluation loss at its very step."""
    manifests = _manifests(storage)
    for step in best_first(manifests):
        manifest = manifests[step]
        if manifest and not _difference(storage, manifest):
            return manifest
    return None


def last_checkpoint(fence: Fence) -> CheckpointManifest | None:
    """The newest one, unverified: the ranks have saved it just now, or gone on from it."""
    step = newest_step(fence.storage)
    return None if step is None else read_manifest(fence.storage, step)


def exported_checkpoint(fence: Fence, final: CheckpointManifest) -> CheckpointManifest | None:
    """That of the exported weights, as the manifest of a run's last checkpoint tells it; None where it is gone."""
    if final.exported_step is None:
        return final
    remote = fence.remote
    return remote.manifest(final.exported_step) if remote else read_manifest(fence.storage, final.exported_step)


def read_manifest(storage: Path, step: int) -> CheckpointManifest | None:
    """Of a published checkpoint, unverified; None where it can't be read."""
    return _read(storage, step)[0]


def newest_step(storage: Path) -> int | None:
    """Of the published checkpoints, unverified: what was saved, though nobody may have lived to tell."""
    return max(_steps(storage), default=None)


def set_aside(fence: Fence, steps: list[int]) -> None:
    """Renames checkpoints that do not verify, for their steps will be saved again."""
    fence.check()
    for step in steps:
        if fence.remote:
            fence.remote.set_aside(step, attempt=fence.attempt)
        folder = fence.storage / names.checkpoint_folder(step)
        with folder_told(folder):
            folder.rename(fence.storage / names.corrupt(folder.name, attempt=fence.attempt))


def remove_leftovers(fence: Fence) -> None:
    """Deletes what earlier attempts were writing when they ended."""
    fence.check()
    if fence.remote:
        fence.remote.remove_unpublished()
    for path in _entries(fence.storage):
        attempt = names.temporary_attempt(path.name)
        if attempt is not None and attempt < fence.attempt:
            # A lost attempt that lives on and writes finds its folder gone, and none disappears under the deletion.
            # Once: where it can't be deleted, its name would grow with each attempt.
            was_renamed = names.temporary_attempt(path.stem) is not None
            doomed = path.with_name(names.temporary(path.name, attempt=fence.attempt))
            discard(path, renamed=None if was_renamed else doomed)


def store_files(fence: Fence, temporary: Path, paths: Sequence[str], *, step: int) -> list[FileEntry]:
    """What this rank has written of a checkpoint: hashed, and sent to where it counts."""
    entries = hash_files(temporary, paths)
    if fence.remote:
        fence.check()
        fence.remote.upload(temporary, step, paths, check=fence.check)
    return entries


def publish_checkpoint(fence: Fence, temporary: Path, manifest: CheckpointManifest, *, keep_last: int) -> None:
    """Once all ranks have stored their files: writes the manifest, syncs, reads the fence, renames, and deletes what
    retention lets go. On rank 0."""
    write_atomically(temporary / names.MANIFEST, manifest.to_json(indent=2))
    fence.check()
    if fence.remote:
        fence.remote.publish(manifest)
        fence.remote.tell_trackio(fence.storage)
    publish(temporary, fence.storage / names.checkpoint_folder(manifest.step))
    # First: the pointer needs room too.
    retain(fence, keep_last=keep_last)
    fence.records.replace(names.LATEST, names.checkpoint_folder(manifest.step))


def published_or_undone(fence: Fence, step: int) -> CheckpointManifest | None:
    """Of a save of this attempt that has failed: the checkpoint, where that was after it was published. Else None, and
    nothing of it is left in a bucket. On rank 0, when no rank writes any more."""
    fence.check()
    manifest = fence.remote.manifest(step) if fence.remote else read_manifest(fence.storage, step)
    if manifest and manifest.attempt == fence.attempt:
        return manifest
    if fence.remote and manifest is None:
        fence.remote.delete(step)
    return None


def make_room(fence: Fence, step: int, *, drops_unasked: bool) -> bool:
    """Deletes what a failed save of this step has left on this machine, and if it may, what the clock has saved before;
    whether there was any of that. On one rank of each folder, when none writes any more."""
    temporary = fence.storage / names.temporary(names.checkpoint_folder(step), attempt=fence.attempt)
    if temporary.exists():
        discard(temporary)
    return drops_unasked and drop_unasked(fence, before=step)


def drop_unasked(fence: Fence, *, before: int) -> bool:
    """Deletes what the clock has saved before a step; whether there was any. Of a bucket the copy here alone."""
    fence.check()
    dropped = [step for step in _unasked(_manifests(fence.storage)) if step < before and _delete(fence, step)]
    for step in dropped:
        log.info("%s, which the clock had saved, is deleted", names.checkpoint_folder(step))
    if not fence.remote and fence.records.read(names.LATEST) in map(names.checkpoint_folder, dropped):
        # Else the next attempt would tell that somebody has taken it away.
        fence.records.remove(names.LATEST)
    return bool(dropped)


def forget_copies(fence: Fence) -> None:
    """On a node without rank 0, whose files are in the bucket: nobody reads those here any more, nor the checkpoint
    that the attempt has gone on from."""
    for path in fence.storage.iterdir():
        if names.checkpoint_step(path.name) is not None or names.temporary_attempt(path.name) == fence.attempt:
            shutil.rmtree(path, ignore_errors=True)


def amend_manifest(fence: Fence, step: int, changes: dict[str, Any]) -> CheckpointManifest:
    """What became known of a step only after its checkpoint was published; the files stay as they are."""
    folder = fence.storage / names.checkpoint_folder(step)
    with folder_told(folder):
        manifest = CheckpointManifest.from_json((folder / names.MANIFEST).read_text()).model_copy(update=changes)
        fence.check()
        if fence.remote:
            fence.remote.amend(manifest)
        write_atomically(folder / names.MANIFEST, manifest.to_json(indent=2))
    return manifest


def retain(fence: Fence, *, keep_last: int) -> None:
    """Deletes all but the newest, and the best of those that were evaluated. What the clock has saved is kept until
    something newer is there, whatever that is, and is none of `keep_last`.

    Called right after a publish: the newest is known to be whole.
    """
    fence.check()
    if fence.remote:
        for step in _superfluous(fence.remote.manifests(), keep_last=keep_last):
            fence.remote.delete(step)
    # Of the newest alone a copy is needed, and of the best, which may be exported.
    for step in _superfluous(_manifests(fence.storage), keep_last=0 if fence.remote else keep_last):
        _delete(fence, step)


def _delete(fence: Fence, step: int) -> bool:
    """Whether the folder is gone."""
    folder = fence.storage / names.checkpoint_folder(step)
    # Under its temporary name first: a folder called step-<K> is always whole.
    discard(folder, renamed=folder.with_name(names.temporary(folder.name, attempt=fence.attempt)))
    return not folder.exists()


def _superfluous(manifests: Mapping[int, CheckpointManifest | None], *, keep_last: int) -> list[int]:
    """Of the checkpoints there are, by step; one without a manifest that can be read is no good to anyone."""
    kept, unasked = best_first(manifests)[:1], _unasked(manifests)
    kept += sorted(manifests.keys() - unasked, reverse=True)[:keep_last]
    return [step for step in sorted(manifests, reverse=True)[1:] if step not in kept]


def _unasked(manifests: Mapping[int, CheckpointManifest | None]) -> list[int]:
    return [step for step, manifest in manifests.items() if manifest and manifest.saved_by_clock]


def _manifests(storage: Path) -> dict[int, CheckpointManifest | None]:
    return {step: read_manifest(storage, step) for step in _steps(storage)}


def _read(storage: Path, step: int) -> tuple[CheckpointManifest | None, str]:
    """The manifest of a published checkpoint, or what is wrong with it."""
    folder = storage / names.checkpoint_folder(step)
    with folder_told(folder):
        try:
            return CheckpointManifest.from_json((folder / names.MANIFEST).read_text()), ""
        except (FileNotFoundError, NotADirectoryError):
            return None, f"{names.MANIFEST} is missing"
        except (ValidationError, UnicodeDecodeError):
            return None, f"{names.MANIFEST} can't be read"


def _difference(storage: Path, manifest: CheckpointManifest) -> str | None:
    folder = storage / names.checkpoint_folder(manifest.step)
    with folder_told(folder):
        return first_difference(folder, manifest.files)


def _steps(storage: Path) -> list[int]:
    return [step for path in _entries(storage) if (step := names.checkpoint_step(path.name)) is not None]


def _entries(storage: Path) -> list[Path]:
    with folder_told(storage):
        return list(storage.iterdir()) if storage.is_dir() else []
