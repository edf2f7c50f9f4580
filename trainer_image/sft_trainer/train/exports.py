"""The end of a run: which of its checkpoints is exported, and the folders that are made of it. Called by the loop."""

import functools
import logging
from pathlib import Path

import torch

from sft_trainer.datasets.batch import BatchStream
from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.model.export import export_adapter, export_model
from sft_trainer.run import Export, RunOptions
from sft_trainer.storage.checkpoints import amend_manifest, find_best, read_manifest
from sft_trainer.storage.fence import Fence
from sft_trainer.train.card import write_card
from sft_trainer.train.world import World
from sftjob.manifest import CheckpointManifest

log = logging.getLogger(__name__)


def choose_exported(
    fence: Fence, *, last_step: int, exports_best: bool
) -> tuple[CheckpointManifest, CheckpointManifest]:
    """The run's last checkpoint, and the one that is exported; the manifest of the last names it where it's another.

    On rank 0, when the last checkpoint is published.
    """
    last = read_manifest(fence.storage, last_step)
    assert last, "it was published just now, or is the one that was taken up"
    if not exports_best:
        return last, last
    best = find_best(fence.storage) or last
    last = amend_manifest(fence, last_step, {"exported_step": None if best.step == last_step else best.step})
    log.info("step %d is exported: its evaluation loss is the lowest of all checkpoints", best.step)
    return last, best if best.step != last_step else last


def write_export(
    export: Export,
    model: torch.nn.Module,
    *,
    options: RunOptions,
    data: PreparedData,
    stream: BatchStream,
    world: World,
    checkpoint: CheckpointManifest,
    total_steps: int,
) -> None:
    """On every rank, with the model as it was in `checkpoint`; all return when all is written."""
    source = options.load_from
    if export.format == "adapter":
        assert source is not None, "nothing was adapted"
        write = functools.partial(export_adapter, base=options.base_repository or str(Path(source).absolute()))
    else:
        write = functools.partial(export_model, source=source)
    write(
        model,
        export.folder,
        tokenizer_path=options.tokenizer_path,
        chat_template=options.chat_template,
        dtype=export.dtype,
    )
    # All ranks, CPU: a device's collectives are given up after ten minutes, and the first rank may need more to write
    # a large model. So none gathers the next export before it has.
    world.from_first(
        lambda: write_card(
            export.folder,
            options=options,
            data=data,
            stream=stream,
            checkpoint=checkpoint,
            total_steps=total_steps,
            library="peft" if export.format == "adapter" else "transformers",
        )
    )
