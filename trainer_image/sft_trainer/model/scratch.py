"""Random weights for a model trained from scratch: the library's rules, one module at a time, straight into shards.

Every rank draws every value, from one seed, and keeps its part: the model does not depend on the number of ranks, and
never is more than one module (an embedding at most) whole on any of them. Called by `build`.
"""

import math

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from sft_trainer.model import transformers_private
from sftjob.failure import JobFailure, Reason


@torch.no_grad()
def initialise(model: PreTrainedModel, *, device: torch.device, seed: int) -> None:
    """Replace the meta tensors of `model`. Raises JobFailure where the library's rules leave one out."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        done: set[torch.Tensor] = set()
        _visit(model, owner=model, device=device, done=done)
    transformers_private.tie_weights(model)


def _visit(module: torch.nn.Module, *, owner: PreTrainedModel, device: torch.device, done: set[torch.Tensor]) -> None:
    """Children first, each by the rules of the nearest enclosing model: the order of the library's own."""
    for child in module.children():
        inner = child if isinstance(child, PreTrainedModel) else owner
        _visit(child, owner=inner, device=device, done=done)
    meta = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    # A head tied to the embedding holds nothing else: drawing it would only cost time.
    if meta and done.issuperset(meta.values()):
        return
    for name, tensor in meta.items():
        whole = torch.full(tensor.shape, _unset(tensor.dtype), dtype=tensor.dtype, device=device)
        put(module, name, whole)
    transformers_private.initialise_module(owner, module)
    for name, tensor in meta.items():
        whole = getattr(module, name)
        if (whole == _unset(whole.dtype)).any() or (whole.is_floating_point() and whole.isnan().any()):
            raise JobFailure(
                Reason.INVALID_CONFIGURATION,
                f"model: transformers has no random values for {type(module).__name__}.{name}; start from a pretrained "
                "model (loadFrom)",
            )
        if isinstance(tensor, DTensor):
            put(module, name, this_ranks_part(whole.detach(), of=tensor))
        done.add(tensor)


def _unset(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return math.nan
    return False if dtype == torch.bool else torch.iinfo(dtype).min


def put(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """FSDP2 takes up parameters that were replaced before its first forward, as the library's loader does it too."""
    if name in module._parameters:
        setattr(module, name, torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    else:
        module._buffers[name] = tensor


def this_ranks_part(whole: torch.Tensor, *, of: torch.Tensor) -> torch.Tensor:
    """Of a tensor that every rank has whole, sharded like `of`; `whole` itself where `of` is not sharded."""
    if not isinstance(of, DTensor):
        return whole
    # `src_data_rank=None`: no rank sends, all have drawn the same values.
    sharded = distribute_tensor(whole, of.device_mesh, of.placements, src_data_rank=None)
    return own_part(sharded)


def own_part(part: DTensor) -> DTensor:
    """With a copy of what this rank has of it: a view would keep the whole alive."""
    return DTensor.from_local(
        part.to_local().clone(),
        part.device_mesh,
        part.placements,
        run_check=False,
        shape=part.shape,
        stride=part.stride(),
    )
