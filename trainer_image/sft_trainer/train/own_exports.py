"""The trained model of a run that no job's output takes: beside its checkpoints, published by the run itself.

    <storage>/hf/        the model
             /adapter/   what LoRA learnt

Called by `Trainer`, in the script of a job or without one.
"""

from pathlib import Path
from typing import get_args

from sft_trainer.run import Export, RunOptions, RunPlace
from sft_trainer.storage.checkpoints import exported_checkpoint, last_checkpoint
from sft_trainer.storage.fence import Fence
from sft_trainer.storage.folders import hash_tree
from sft_trainer.storage.outputs import FolderOutput
from sftjob import names
from sftjob.failure import JobFailure, Reason
from sftjob.manifest import ExportManifest
from sftjob.options import OutputFormat


def own_export(storage: Path, format_: OutputFormat = "hf") -> Path:
    return storage / format_


def missing_own_exports(options: RunOptions, fence: Fence) -> list[Export]:
    """What an earlier attempt has not published; each in a folder of this attempt until it is."""
    formats: list[OutputFormat] = ["hf", "adapter"] if options.lora_cfg else ["hf"]
    return [
        Export(fence.storage / names.temporary(format_, attempt=fence.attempt), format_)
        for format_ in formats
        if not own_export(fence.storage, format_).exists()
    ]


def publish_own_exports(place: RunPlace) -> None:
    """On rank 0, after training, as a job's outputs are. Raises JobFailure where one that is there is another model."""
    fence = place.fence
    final = last_checkpoint(fence)
    exported = final and exported_checkpoint(fence, final)
    for export in place.exports:
        manifest = ExportManifest(
            owner_uid=fence.job_uid,
            attempt=fence.attempt,
            step=exported and exported.step,
            checkpoint_digest=exported and exported.digest(),
            files=hash_tree(export.folder, leave_out=names.EXPORT_MANIFEST),
        )
        output = FolderOutput(own_export(fence.storage, export.format))
        output.publish(export.folder, manifest, check=fence.check, on_detail=lambda _: None)
    for format_ in get_args(OutputFormat):
        folder = own_export(fence.storage, format_)
        published = FolderOutput(folder).manifest()
        # A step that was trained again, where its checkpoint was lost, is the same model.
        if published and exported and published.step != exported.step:
            raise JobFailure(
                Reason.STORAGE_REFUSED,
                f"{folder} is the model of another checkpoint, of step {published.step}, than the one that the run's "
                f"options choose, of step {exported.step}; move it elsewhere, and the next attempt exports that one",
            )
