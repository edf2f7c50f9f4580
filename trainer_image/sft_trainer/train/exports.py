"""The end of a run: which of its checkpoints is exported, and the folders that are made of it. Called by the loop."""

import functools
import logging
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch

from sft_trainer.datasets.batch import BatchStream
from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.datasets.special import special_tokens
from sft_trainer.model.export import export_adapter, export_model
from sft_trainer.run import Export, RunOptions, RunPlace
from sft_trainer.storage.best import best_first
from sft_trainer.storage.checkpoints import amend_manifest, find_best, read_manifest
from sft_trainer.storage.fence import Fence
from sft_trainer.train.card import write_card
from sft_trainer.train.telling import RunTeller
from sft_trainer.train.world import World
from sftjob import names
from sftjob.manifest import CheckpointManifest

_LOOK_SECONDS = 1.0

log = logging.getLogger(__name__)


def choose_exported(
    place: RunPlace, *, last_step: int, exports_best: bool, world: World, teller: RunTeller
) -> tuple[CheckpointManifest, CheckpointManifest]:
    """The run's last checkpoint, and the one that is exported; the manifest of the last names it where it's another.

    On every rank, when the last checkpoint is published.
    """
    fence = place.fence
    last = world.from_first(lambda: read_manifest(fence.storage, last_step))
    assert last, "it was published just now, or is the one that was taken up"
    if exports_best and last.exported_step is not None and not place.exports:
        # Chosen and published by an earlier attempt.
        return last, last
    best = last
    if exports_best:
        best = _best(fence, last_step=last_step, world=world, teller=teller) or last
    exported_step = None if best.step == last_step else best.step
    if exported_step != last.exported_step:
        last = world.from_first(lambda: amend_manifest(fence, last_step, {"exported_step": exported_step}))
    if exports_best and place.exports:
        log.info("step %d is exported: its evaluation loss is the lowest of all checkpoints", best.step)
    return last, best if best.step != last_step else last


def _best(fence: Fence, *, last_step: int, world: World, teller: RunTeller) -> CheckpointManifest | None:
    """Of the checkpoints that are whole on every node."""
    remote = fence.remote
    if remote is None:
        return world.from_first(lambda: find_best(fence.storage))
    manifests = world.from_first(remote.manifests)
    for step in best_first(manifests):
        # The last one's weights are those in memory.
        if step == last_step or _is_fetched(fence, step, world=world, teller=teller):
            return manifests[step]
    return None


def _is_fetched(fence: Fence, step: int, *, world: World, teller: RunTeller) -> bool:
    """Whether a checkpoint has arrived whole in the copies of all nodes; one rank of each fetches it."""

    def fetch() -> str | None:
        return fence.remote.fetch(fence.storage, step, attempt=fence.attempt, on_detail=lambda _: None)

    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(fetch) if world.leads_node else None
        # All ranks: where no launcher watches, a collective is given up after half an hour, and the fetch of a large
        # checkpoint may take longer.
        while world.max(float(fetching is not None and not fetching.done())):
            teller.progress(detail=f"fetches {names.checkpoint_folder(step)}")
            wait([fetching] if fetching else [], timeout=_LOOK_SECONDS)
        faults = world.from_each(lambda: fetching and fetching.result())
    for fault in filter(None, faults):
        log.warning("%s is not exported: %s", names.checkpoint_folder(step), fault)
    return not any(faults)


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
        write = functools.partial(
            export_adapter,
            base=options.base_repository or str(Path(source).absolute()),
            revision=options.base_revision,
        )
    else:
        special = special_tokens(options.tokenizer_path, chat_template=options.dataloader_cfg.chat_template)
        write = functools.partial(export_model, source=source, special=special)
    write(
        model,
        export.folder,
        tokenizer_path=options.tokenizer_path,
        chat_template=options.chat_template,
        dtype=export.dtype,
    )
    # All ranks, CPU: where no launcher watches, a device's collectives are given up after ten minutes, and the first
    # rank may need more to write a large model. So none gathers the next export before it has.
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
