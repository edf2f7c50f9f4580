"""What a run trains: the model, its optimiser, and the checkpoint that they go on from.

Called by the loop on every rank together, once.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.model.build import build_model
from sft_trainer.model.probe import probe
from sft_trainer.model.rotary import refuse_packs_beyond_rotary_limit
from sft_trainer.run import RunOptions, RunPlace
from sft_trainer.train.checkpoint import create_optimizer_state, load_checkpoint
from sft_trainer.train.optimizer import build_optimizer
from sft_trainer.train.resume import choose_checkpoint, refuse_different_copies
from sft_trainer.train.same_data import refuse_different_data
from sft_trainer.train.telling import RunTeller
from sft_trainer.train.vocabulary import refuse_unknown_tokens
from sft_trainer.train.world import World
from sftjob import names
from sftjob.manifest import CheckpointManifest
from sftjob.progress import Stage


@dataclass(frozen=True)
class Loaded:
    model: torch.nn.Module
    optimizer: torch.optim.AdamW
    config_digest: str
    resumed: CheckpointManifest | None
    """Whose weights, moments and random state are loaded; None from the start."""


def load(
    options: RunOptions,
    place: RunPlace,
    data: PreparedData,
    *,
    world: World,
    precision: Literal["fp32", "bf16"],
    teller: RunTeller,
) -> Loaded:
    """Raises JobFailure for what can't be trained, or not on top of the checkpoints in `place`."""
    refuse_different_data(data, options, world)
    # Before the weights are read: with LoRA it is of the base that the adapters are trained on.
    config_digest = world.from_first(options.digest)
    model = _proven_model(options, data, world=world, precision=precision)
    optimizer = build_optimizer(model, options.optim_cfg)
    create_optimizer_state(model, optimizer)
    resumed = world.from_first(
        lambda: choose_checkpoint(place, config_digest=config_digest, data_digest=data.digest, teller=teller)
    )
    refuse_different_copies(place.fence, resumed, world=world)
    if resumed is not None:
        teller.progress(stage=Stage.LOADING_CHECKPOINT, detail=names.checkpoint_folder(resumed.step))
        load_checkpoint(
            model,
            optimizer,
            world=world,
            storage=place.fence.storage,
            step=resumed.step,
            updates=resumed.step - resumed.skipped_steps,
        )
    return Loaded(model, optimizer, config_digest, resumed)


def _proven_model(
    options: RunOptions, data: PreparedData, *, world: World, precision: Literal["fp32", "bf16"]
) -> torch.nn.Module:
    model = build_model(
        options.model_cfg,
        load_from=options.load_from,
        loss_cfg=options.loss_cfg,
        fsdp_cfg=options.fsdp_cfg,
        precision=precision,
        device=world.device,
        mesh=world.mesh,
        seed=options.seed,
        lora_cfg=options.lora_cfg,
    )
    # What a model draws while it trains (dropout) is its rank's own, the same in every run, and saved.
    torch.manual_seed(options.seed + world.rank)
    rows = model.get_input_embeddings().weight.shape[0]
    world.from_first(lambda: refuse_unknown_tokens(data, rows=rows, tokenizer_path=options.tokenizer_path))
    packed = options.dataloader_cfg
    refuse_packs_beyond_rotary_limit(model, pack_tokens=packed.pack_max_length, level=packed.pack_level)
    probe(model, vocab_size=rows)
    return model
