"""Saves and loads the whole state of training: trained weights, AdamW's moments, each rank's random state.

Shards are written with torch's distributed checkpointing (DCP), so that any number of ranks can load them; what makes
the folder a checkpoint is its manifest (`sft_trainer.storage.checkpoints`).
"""

import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from sft_trainer.storage.checkpoints import forget_copies, publish_checkpoint, store_files
from sft_trainer.storage.fence import Fence
from sft_trainer.train.bf16_moments import MOMENTS, Bf16MomentsAdamW
from sft_trainer.train.world import World
from sftjob import names
from sftjob.failure import JobFailure, Reason, storage_reason
from sftjob.manifest import CheckpointManifest, FileEntry

log = logging.getLogger(__name__)

_METADATA = ".metadata"
"""DCP's: which shard holds what."""

# DCP warns of what `no_dist` asks for. Not around each call: filters belong to all threads together.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def create_optimizer_state(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> None:
    """What AdamW would create at its first step; created before it, so that a load finds tensors to fill."""
    dtype = torch.bfloat16 if isinstance(optimizer, Bf16MomentsAdamW) else None
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        optimizer.state[parameter] = {
            # Beside the parameter, as the fused kernel wants it.
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            **{moment: torch.zeros_like(parameter, dtype=dtype) for moment in MOMENTS},
        }


class _ShardWriter(FileSystemWriter):
    """Stores what its rank has to say of a step, then its shards: DCP tells every rank of a failure in here."""

    def __init__(
        self, path: Path, *, tell: Callable[[], None], store: Callable[[Sequence[str]], list[FileEntry]]
    ) -> None:
        super().__init__(path)
        self._tell, self._store = tell, store
        self.files: list[FileEntry] = []

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        # A checkpoint never knows more than the ledger.
        self._tell()
        written = self._write(plan, planner)
        self.files = self._store(sorted({result.storage_data.relative_path for result in written.value()}))
        return written

    def _write(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            # torch tells of a full volume as of an "unexpected pos" in its own file format.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def state_of(
    model: torch.nn.Module, optimizer: torch.optim.AdamW, *, world: World, random_state: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of this rank, by name; shares memory with the run.

    `random_state` is the rank's at the end of the step: a stop saves when a part of the next one has been computed.
    """
    return _tensors(model, optimizer) | {f"rng.{world.rank}": random_state}


def write_checkpoint(
    state: dict[str, torch.Tensor],
    *,
    world: World,
    group: dist.ProcessGroup | None,
    fence: Fence,
    manifest: CheckpointManifest,
    keep_last: int,
    sync_ledger: Callable[[], None],
) -> CheckpointManifest:
    """Writes, hashes, stores and publishes `step-<K>`, then deletes what retention lets go.

    Called by all ranks, each with its `state`, in a thread too: they meet in `group` only. Returns the manifest, on
    rank 0 as published. Raises JobFailure: SUPERSEDED where a later attempt has entered, STORAGE_UNAVAILABLE or
    STORAGE_FULL where the folder can't be written.
    """
    folder = fence.storage / names.checkpoint_folder(manifest.step)
    temporary = folder.with_name(names.temporary(folder.name, attempt=fence.attempt))

    def tell() -> None:
        sync_ledger()
        if fence.remote and world.leads_node:
            # Of all ranks of this node: DCP has gathered their plans by now, so each has told of the step.
            fence.remote.tell(fence.storage, attempt=fence.attempt)

    writer = _ShardWriter(
        temporary, tell=tell, store=lambda paths: store_files(fence, temporary, paths, step=manifest.step)
    )
    try:
        # All ranks: each writes and stores its own shards; rank 0 gathers what was written into `.metadata`. When that
        # is done on rank 0, all of them have stored theirs.
        dcp.save(state, storage_writer=writer, process_group=group, no_dist=world.size == 1)
        files = _gathered(writer.files, world=world, group=group)
        if world.is_first:
            files += store_files(fence, temporary, [_METADATA], step=manifest.step)
            manifest = manifest.model_copy(update={"files": sorted(files, key=lambda entry: entry.path)})
            publish_checkpoint(fence, temporary, manifest, keep_last=keep_last)
        elif fence.remote and world.leads_node:
            forget_copies(fence)
    except (CheckpointException, OSError) as error:
        raise _failure(fence, temporary, error) from error
    return manifest


def _gathered(files: list[FileEntry], *, world: World, group: dist.ProcessGroup | None) -> list[FileEntry]:
    """Those of all ranks, on rank 0."""
    if world.size == 1:
        return files
    of_each: list[Any] | None = [None] * world.size if world.is_first else None
    # All ranks, in the save's own group: the manifest lists what each has stored.
    dist.gather_object(files, of_each, dst=0, group=group)
    return [entry for one in of_each or [] for entry in one]


def load_checkpoint(
    model: torch.nn.Module, optimizer: torch.optim.AdamW, *, world: World, storage: Path, step: int, updates: int
) -> None:
    """Fills model, optimiser and random state in place, on any number of ranks. Called by all ranks.

    `updates` are the steps up to `step` that the optimiser has taken: skipped ones don't count.
    """
    reader = FileSystemReader(storage / names.checkpoint_folder(step))
    state = _tensors(model, optimizer)
    name, random = f"rng.{world.rank}", get_random_state(world.device)
    saved = reader.read_metadata().state_dict_metadata.get(name)
    if saved is not None and saved.size == random.shape:
        state[name] = random
    elif saved is not None:
        log.warning(
            "step %d was saved on another kind of device: what is random begins anew, as with other ranks", step
        )
    # All ranks: each reads the parts of the shards that it holds.
    dcp.load(state, storage_reader=reader, no_dist=world.size == 1)
    set_random_state(random, world.device)
    for parameter_state in optimizer.state.values():
        parameter_state["step"].fill_(updates)


def load_weights(model: torch.nn.Module, *, world: World, storage: Path, step: int) -> None:
    """Those of another checkpoint, in place, for an export: with them moments and random state no longer go together.

    Called by all ranks.
    """
    reader = FileSystemReader(storage / names.checkpoint_folder(step))
    # All ranks: each reads the parts of the shards that it holds.
    dcp.load(_weights(model), storage_reader=reader, no_dist=world.size == 1)


def _tensors(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """By name, sharing memory with model and optimiser; a tied weight stands once, and a frozen one not at all."""
    state = _weights(model)
    for name, parameter in _trained(model).items():
        for moment in MOMENTS:
            state[f"optimizer.{name}.{moment}"] = optimizer.state[parameter][moment]
    return state


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    kept = _trained(model).keys() | dict(model.named_buffers()).keys()
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items() if name in kept}


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def get_random_state(device: torch.device) -> torch.Tensor:
    """[bytes] uint8: the CPU generator's state, then the GPU's where there is one."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """As `get_random_state` gave it."""
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
    if told := next((cause for cause, _ in causes if isinstance(cause, JobFailure)), None):
        return told
    if exists := next((cause for cause, _ in causes if isinstance(cause, FileExistsError)), None):
        return JobFailure(
            Reason.STORAGE_UNAVAILABLE,
            f"spec.checkpoint.storage: {exists}: somebody else has saved that step since this attempt began, and no "
            "checkpoint is replaced; the next attempt goes on from it, if it is whole, or delete it",
        )
    full = any(isinstance(cause, OSError) and storage_reason(cause) is Reason.STORAGE_FULL for cause, _ in causes)
    free = shutil.disk_usage(temporary.parent).free / 1e9
    remedy = (
        f"{free:.1f} GB are free there; free some, or lower checkpoint.keepLast where it is more than 2"
        if full
        else "check the volume"
    )
    reason = Reason.STORAGE_FULL if full else Reason.STORAGE_UNAVAILABLE
    return JobFailure(reason, f"spec.checkpoint.storage: writing {temporary} failed ({causes[0][0]}); {remedy}")
