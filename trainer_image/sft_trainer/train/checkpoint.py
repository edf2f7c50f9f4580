"""Saves and loads the whole state of training: weights, AdamW's moments, each rank's random state.

Shards are written with torch's distributed checkpointing (DCP), so that any number of ranks can load them; what makes
the folder a checkpoint is its manifest (`sft_trainer.storage.checkpoints`).
"""

import logging
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter

from sft_trainer.storage.checkpoints import publish_checkpoint, retain
from sft_trainer.storage.fence import Fence
from sft_trainer.train.world import World
from sftjob import names
from sftjob.failure import JobFailure, Reason, storage_reason
from sftjob.manifest import CheckpointManifest

log = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")


def create_optimizer_state(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> None:
    """What AdamW would create at its first step; created before it, so that a load finds tensors to fill."""
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            # Beside the parameter, as the fused kernel wants it.
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
        }


def save_checkpoint(
    model: torch.nn.Module,
    optimizer: torch.optim.AdamW,
    *,
    world: World,
    fence: Fence,
    manifest: CheckpointManifest,
    keep_last: int,
) -> CheckpointManifest:
    """Writes, hashes and publishes `step-<K>`, then deletes what retention lets go. Called by all ranks.

    Returns the manifest as published. Raises JobFailure: SUPERSEDED where a later attempt has entered,
    STORAGE_UNAVAILABLE or STORAGE_FULL where the folder can't be written.
    """
    folder = fence.storage / names.checkpoint_folder(manifest.step)
    temporary = folder.with_name(names.temporary(folder.name, attempt=fence.attempt))
    state = _tensors(model, optimizer) | {f"rng.{world.rank}": _random_state(world.device)}
    try:
        with warnings.catch_warnings():
            # DCP warns of what `no_dist` asks for.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            # All ranks: each writes its own shards; rank 0 gathers what was written into `.metadata`.
            dcp.save(state, storage_writer=FileSystemWriter(temporary), no_dist=world.size == 1)
    except (CheckpointException, OSError) as error:
        raise _failure(fence, temporary, error) from error

    def publish() -> CheckpointManifest:
        try:
            published = publish_checkpoint(fence, temporary, manifest)
            retain(fence, keep_last=keep_last)
        except OSError as error:
            raise _failure(fence, temporary, error) from error
        return published

    return world.from_first(publish)


def load_checkpoint(
    model: torch.nn.Module, optimizer: torch.optim.AdamW, *, world: World, storage: Path, step: int, updates: int
) -> None:
    """Fills model, optimiser and random state in place, on any number of ranks. Called by all ranks.

    `updates` are the steps up to `step` that the optimiser has taken: skipped ones don't count.
    """
    reader = FileSystemReader(storage / names.checkpoint_folder(step))
    state = _tensors(model, optimizer)
    random = {f"rng.{world.rank}": _random_state(world.device)}
    if random.keys() <= reader.read_metadata().state_dict_metadata.keys():
        state |= random
    # All ranks: each reads the parts of the shards that it holds.
    dcp.load(state, storage_reader=reader, no_dist=world.size == 1)
    _set_random_state(random[f"rng.{world.rank}"], world.device)
    for parameter_state in optimizer.state.values():
        parameter_state["step"].fill_(updates)


def _tensors(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """By name, sharing memory with model and optimiser; a tied weight stands once."""
    parameters = dict(model.named_parameters())
    unique = parameters.keys() | dict(model.named_buffers()).keys()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items() if name in unique}
    for name, parameter in parameters.items():
        for moment in _MOMENTS:
            state[f"optimizer.{name}.{moment}"] = optimizer.state[parameter][moment]
    return state


def _random_state(device: torch.device) -> torch.Tensor:
    """[bytes] uint8: the CPU generator's state, then the GPU's where there is one."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def _set_random_state(state: torch.Tensor, device: torch.device) -> None:
    cpu_bytes = torch.get_rng_state().numel()
    torch.set_rng_state(state[:cpu_bytes])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[cpu_bytes:], device)


def _failure(fence: Fence, temporary: Path, error: Exception) -> JobFailure:
    # A later attempt deletes what this one was writing, which is no fault of the volume.
    try:
        fence.check()
    except JobFailure as superseded:
        return superseded
    causes = list(error.failures.values()) if isinstance(error, CheckpointException) else [(error, None)]
    full = any(isinstance(cause, OSError) and storage_reason(cause) is Reason.STORAGE_FULL for cause, _ in causes)
    free = shutil.disk_usage(temporary.parent).free / 1e9
    remedy = f"{free:.1f} GB are free there; free some, or lower checkpoint.keepLast" if full else "check the volume"
    reason = Reason.STORAGE_FULL if full else Reason.STORAGE_UNAVAILABLE
    return JobFailure(reason, f"spec.checkpoint.storage: writing {temporary} failed ({causes[0][0]}); {remedy}")
