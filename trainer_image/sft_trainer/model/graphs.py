"""The layers' forward and backward of a pack as CUDA graphs: two launches, where a GPU waits for its host's thousands.

In: a pack, and the function that computes hidden states of it. Out: those, whose backward adds to the gradients of
weights. Called by `PackForward` on one process; what ranks wait for each other in is launched one by one, as before.
The head stays outside: how many rows it takes is each pack's own.

A length of pack is captured when it comes for the second time; the first one compiles, and loads every kernel. Graphs
read and write where they were captured: packs are copied to one place, and gradients are summed in buffers that outlive
`zero_grad(set_to_none=True)`.
"""

# ruff: noqa: N803, N806, N815 -- a tensor's name ends with its shape

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from sft_trainer.packed import PackedBatch

log = logging.getLogger(__name__)

HiddenStates = Callable[[PackedBatch], torch.Tensor]
"""[1, T, D] of a pack."""

_MOST_LENGTHS = 16
"""That are captured: each has thousands of nodes, which take memory of the driver."""
_FEWEST_STARTS = 8
"""Of several documents."""


@dataclass(frozen=True)
class _Captured:
    batch: PackedBatch
    """That the graphs read."""
    hidden_1TD: torch.Tensor
    grad_1TD: torch.Tensor
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    weights: list[torch.Tensor]
    """That the backward adds gradients of."""


class CapturedLayers:
    def __init__(self, device: torch.device, *, weight_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """`weight_of` a leaf of the layers' backward: whose gradient it adds to."""
        self._device, self._weight_of = device, weight_of
        self._seen: set[tuple[int, int]] = set()
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._gradients: dict[torch.Tensor, torch.Tensor] = {}
        # The graphs use the same memory, one after another.
        self._pool = torch.cuda.graph_pool_handle()
        self._stopped = False

    def hidden_states(self, batch: PackedBatch, compute: HiddenStates) -> torch.Tensor:
        """`compute(batch)`, to be followed by its backward before it is called again."""
        batch = replace(batch, cu_seqlens=padded_starts(batch.cu_seqlens, tokens=batch.input_ids.shape[1]))
        key = (batch.input_ids.shape[1], batch.cu_seqlens.shape[0])
        if key not in self._captured and not self._captures(key, batch, compute):
            return compute(batch)
        captured = self._captured[key]
        for place, value in zip(_read_by_layers(captured.batch), _read_by_layers(batch), strict=True):
            place.copy_(value)
        self._sum_in_buffers(captured.weights)
        hidden_1TD: torch.Tensor = _Replayed.apply(torch.zeros((), requires_grad=True), captured)
        return hidden_1TD

    def release(self) -> None:
        """Gives back their memory, for good. Gradients that are being summed must have been dropped before."""
        self._stopped = True
        self._captured.clear()
        self._gradients.clear()

    def _captures(self, key: tuple[int, int], batch: PackedBatch, compute: HiddenStates) -> bool:
        if self._stopped or len(self._captured) == _MOST_LENGTHS:
            return False
        if key not in self._seen:
            self._seen.add(key)
            return False
        if not _has_room(self._device):
            return False
        try:
            self._captured[key] = self._capture(batch, compute)
        except RuntimeError as error:
            # A model's own code may ask the GPU for a number, which a graph can't hold.
            self._stopped = True
            log.warning("the layers are not captured as CUDA graphs: %s", " ".join(str(error).split()))
            _end_failed_capture(self._device)
            return False
        return True

    def _capture(self, batch: PackedBatch, compute: HiddenStates) -> _Captured:
        batch = replace(
            batch,
            input_ids=batch.input_ids.clone(),
            position_ids=batch.position_ids.clone(),
            cu_seqlens=batch.cu_seqlens.clone(),
        )
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with self._recording(forward):
            hidden_1TD = compute(batch)
        weights = [self._weight_of(leaf) for leaf in leaves(hidden_1TD)]
        self._sum_in_buffers(weights)
        grad_1TD = torch.zeros_like(hidden_1TD)
        with self._recording(backward):
            torch.autograd.backward(hidden_1TD, grad_1TD)
        return _Captured(batch, hidden_1TD.detach(), grad_1TD, forward, backward, weights)

    def _recording(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        # Other threads, as that which saves, may go on using the GPU.
        return torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")

    @torch.no_grad()
    def _sum_in_buffers(self, weights: list[torch.Tensor]) -> None:
        empty = []
        for weight in weights:
            buffer = self._gradients.get(weight)
            if buffer is None:
                buffer = self._gradients[weight] = torch.empty_like(weight)
            if weight.grad is None:
                empty.append(buffer)
            elif weight.grad is not buffer:
                # Of a pack before it in this step, that was not captured.
                buffer.copy_(weight.grad)
            weight.grad = buffer
        if empty:
            torch._foreach_zero_(empty)


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _wants_gradient: torch.Tensor, captured: _Captured) -> torch.Tensor:
        ctx.captured = captured
        captured.forward.replay()
        return captured.hidden_1TD.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_1TD: torch.Tensor) -> tuple[None, None]:
        ctx.captured.grad_1TD.copy_(grad_1TD)
        ctx.captured.backward.replay()
        return None, None


def _end_failed_capture(device: torch.device) -> None:
    """Torch takes its random generator for captured until another capture has ended well."""
    number = torch.zeros((), device=device)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        number.zero_()


def padded_starts(starts: torch.Tensor, *, tokens: int) -> torch.Tensor:
    """With documents of no token at the end, so that few numbers of documents occur: one, or a power of two less one.

    One stays alone: a pack of one document has a kernel of its own.
    """
    count = starts.shape[0]
    if count == 2:
        return starts
    return F.pad(starts, (0, max(_FEWEST_STARTS, 1 << (count - 1).bit_length()) - count), value=tokens)


def leaves(result: torch.Tensor) -> list[torch.Tensor]:
    """The tensors to whose gradients `result.backward()` adds."""
    waiting: list[Any] = [result.grad_fn]
    seen: set[Any] = set()
    return list(_leaves(waiting, seen))


def _leaves(waiting: list[Any], seen: set[Any]) -> Iterator[torch.Tensor]:
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("AccumulateGrad"):
            yield node.variable
        waiting.extend(following for following, _ in node.next_functions)


def _read_by_layers(batch: PackedBatch) -> tuple[torch.Tensor, ...]:
    return batch.input_ids, batch.position_ids, batch.cu_seqlens


def _has_room(device: torch.device) -> bool:
    """For what a micro-batch takes, twice: in the graphs' own memory, and for all that is not captured."""
    held = torch.cuda.memory_allocated(device)
    taken = torch.cuda.max_memory_allocated(device) - held
    free_of_device, _ = torch.cuda.mem_get_info(device)
    return free_of_device + torch.cuda.memory_reserved(device) - held >= 2 * taken
