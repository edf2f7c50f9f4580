"""Which checkpoint a run goes on from: rank 0 chooses, and all ranks compare what they have. Called by the loop."""

import logging

from sft_trainer.run import RunPlace
from sft_trainer.storage.checkpoints import drop_unasked, find_newest, last_checkpoint, remove_leftovers, set_aside
from sft_trainer.storage.fence import Fence
from sft_trainer.train.telling import RunTeller
from sft_trainer.train.world import World
from sftjob import names
from sftjob.failure import JobFailure, Reason
from sftjob.manifest import CheckpointManifest

log = logging.getLogger(__name__)


def choose_checkpoint(
    place: RunPlace, *, config_digest: str, data_digest: str, teller: RunTeller
) -> CheckpointManifest | None:
    """The newest one that verifies; those that don't are moved out of the way.

    Raises JobFailure(INVALID_CONFIGURATION or INVALID_DATA) for one of another run.
    """
    fence = place.fence
    if not place.resume:
        return None
    remove_leftovers(fence)
    found = find_newest(fence.storage)
    if found.corrupt:
        set_aside(fence, list(found.corrupt))
    skipped = [f"{names.checkpoint_folder(step)}: {what}" for step, what in found.corrupt.items()]
    latest = names.checkpoint_step(fence.records.read(names.LATEST) or "")
    if latest is not None and latest > max([found.manifest.step if found.manifest else 0, *found.corrupt]):
        skipped.insert(0, f"{names.checkpoint_folder(latest)}: it was saved and is gone")
    for line in skipped:
        log.warning("skipped checkpoint %s", line)
    if skipped:
        teller.progress(skipped_checkpoints=skipped)
    if found.manifest is None:
        return None
    folder = fence.storage / names.checkpoint_folder(found.manifest.step)
    if found.manifest.config_digest != config_digest:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"{folder} was trained with other options (model, lora, optimizer, schedule, batch, length, precision, "
            "seed); use the same ones, or another folder",
        )
    if found.manifest.data_digest != data_digest:
        raise JobFailure(
            Reason.INVALID_DATA,
            f"the data, its template or its packing changed since {folder} was saved, or another version of "
            "sftjob prepared it; restore it, or start a new run with another storage folder",
        )
    # An attempt may have ended between its last save and their deletion.
    drop_unasked(fence, before=found.manifest.step)
    return found.manifest


def refuse_different_copies(fence: Fence, chosen: CheckpointManifest | None, *, world: World) -> None:
    """Where each node works on a copy of a bucket: raises JobFailure, on every rank with the same words, where one has
    another newest checkpoint than the one that rank 0 goes on from. Ranks of two steps would train a mixture."""
    if fence.remote is None:
        return
    copies = world.from_each(lambda: last_checkpoint(fence))
    different = [rank for rank, copy in enumerate(copies) if copy != chosen]
    if different:
        copy, uri = copies[different[0]], fence.uri
        raise JobFailure(
            Reason.STORAGE_UNAVAILABLE,
            f"spec.checkpoint.storage: of {uri} rank {different[0]} has {_told(copy)} in its copy, and rank 0 goes on "
            f"from {_told(chosen)}; the next attempt fetches it again",
        )


def _told(manifest: CheckpointManifest | None) -> str:
    return f"{names.checkpoint_folder(manifest.step)} of attempt {manifest.attempt}" if manifest else "no checkpoint"
