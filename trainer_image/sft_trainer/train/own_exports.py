"""The trained model of a run that no job's output takes: beside its checkpoints, published by the run itself.

    <storage>/hf/        the model
             /adapter/   what LoRA learnt

Called by `Trainer`, in the script of a job or without one.
"""

from pathlib import Path

from sft_trainer.run import Export, RunOptions, RunPlace
from sft_trainer.storage.fence import Fence
from sft_trainer.storage.folders import publish
from sftjob import names
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
    """On rank 0, after training."""
    place.fence.check()
    for export in place.exports:
        publish(export.folder, own_export(place.fence.storage, export.format))
