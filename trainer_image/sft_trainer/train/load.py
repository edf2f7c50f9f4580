"""What a run trains: the model, its optimiser, and the checkpoint that they go on from.

Called by the loop on every rank together, once.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.model.build import build_model, model_on_meta
from sft_trainer.model.position_table import refuse_documents_beyond_position_table
from sft_trainer.model.probe import probe
from sft_trainer.model.rotary import refuse_packs_beyond_rotary_limit, warn_of_documents_beyond_rotary_length
from sft_trainer.run import RunOptions, RunPlace
from sft_trainer.train.accumulate import shortage_reason
from sft_trainer.train.checkpoint import create_optimizer_state, load_checkpoint
from sft_trainer.train.last_words import is_peer_loss
from sft_trainer.train.memory import memory_line, run_memory
from sft_trainer.train.optimizer import build_optimizer
from sft_trainer.train.resume import choose_checkpoint, refuse_different_copies
from sft_trainer.train.same_data import refuse_different_data
from sft_trainer.train.telling import RunTeller
from sft_trainer.train.vocabulary import refuse_unknown_tokens
from sft_trainer.train.world import World
from sftjob import names
from sftjob.failure import JobFailure, Reason
from sftjob.manifest import CheckpointManifest
from sftjob.memory import MemoryEstimate
from sftjob.options import LoRAConfig
from sftjob.progress import Stage

_DEVICE_SIGNS = ("CUDA", "CUBLAS", "cuDNN", "NCCL")
"""In plain RuntimeErrors; most of theirs have a class of their own."""


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
    """Raises JobFailure for what can't be trained, not on top of the checkpoints in `place`, or not in this memory."""
    with _shortage_told(options, world=world, precision=precision):
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
    world.from_first(lambda: refuse_unknown_tokens(data, options))
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
    world.from_first(lambda: refuse_documents_beyond_position_table(model, data))
    world.from_first(lambda: warn_of_documents_beyond_rotary_length(model, data))
    packed = options.dataloader_cfg
    refuse_packs_beyond_rotary_limit(model, pack_tokens=packed.pack_max_length, level=packed.pack_level)
    with _fault_of_the_forward_told(options.model_cfg.hf_config()["model_type"]):
        probe(model, vocab_size=model.get_input_embeddings().weight.shape[0])
    return model


@contextlib.contextmanager
def _fault_of_the_forward_told(model_type: str) -> Iterator[None]:
    """Shapes that don't fit are the same in every attempt; what a device or another rank has done may not be."""
    try:
        yield
    except RuntimeError as error:
        told = " ".join(str(error).split())
        is_of_a_device = type(error) is not RuntimeError or any(sign in told for sign in _DEVICE_SIGNS)
        if is_of_a_device or is_peer_loss(error) or shortage_reason(error) is not None:
            raise
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"model: {model_type} can't be trained as it is configured: its forward fails ({told}); "
            "correct its config.json, or the preset's fields",
        ) from error


@contextlib.contextmanager
def _shortage_told(options: RunOptions, *, world: World, precision: Literal["fp32", "bf16"]) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if shortage_reason(error) is None:
            raise
        raise _memory_failure(error, options, world=world, precision=precision) from None


def _memory_failure(
    error: RuntimeError, options: RunOptions, *, world: World, precision: Literal["fp32", "bf16"]
) -> JobFailure:
    """The model is described anew, in no memory: there may be no more of the first one than its first weights."""
    model = model_on_meta(
        options.model_cfg, load_from=options.load_from, precision=precision, lora_cfg=options.lora_cfg
    )
    return load_failure(
        " ".join(str(error).split()),
        what=options.base_repository or options.load_from or "a new model",
        memory=run_memory(model, options, world=world, precision=precision),
        lora_cfg=options.lora_cfg,
        device_bytes=torch.cuda.get_device_properties(world.device).total_memory
        if world.device.type == "cuda"
        else None,
    )


def load_failure(
    said: str, *, what: str, memory: MemoryEstimate, lora_cfg: LoRAConfig | None, device_bytes: int | None
) -> JobFailure:
    """`said` is the allocator's; `device_bytes` all that a GPU has, None without one.

    What is smaller than weights, gradients and moments alone is so in each attempt. Anywhere else somebody else may
    have held the memory, and another attempt may find it free.
    """
    remedies = ["use more ranks", "larger devices"]
    if device_bytes is None:
        # Ranks of one pod share its memory.
        remedies = ["raise spec.compute.resources.limits.memory", "use more nodes"]
    if lora_cfg is None:
        remedies.append("spec.training.lora")
    elif device_bytes is not None and lora_cfg.quantize == "none":
        remedies.append("spec.training.lora.quantize: nf4")
    has = "" if device_bytes is None else f", and its device has {device_bytes / 1e9:.2f}"
    is_certain = device_bytes is not None and memory.fixed > device_bytes
    return JobFailure(
        Reason.INVALID_CONFIGURATION if is_certain else Reason.LOAD_OUT_OF_MEMORY,
        f"spec.compute: memory ran out while {what} was loaded, before any pack; {memory_line(memory)}{has}; "
        f"{', '.join(remedies[:-1])} or {remedies[-1]} ({said})",
    )
