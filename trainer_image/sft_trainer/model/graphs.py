"""The layers' forward and backward of a pack as CUDA graphs: a launch each, where a GPU waits for its host's thousands.

In: a pack, and the function that computes hidden states of it. Out: those, whose backward adds to the gradients of
weights. Called by `PackForward` on one process; what ranks wait for each other in is launched one by one, as before.
The head stays outside: how many rows it takes is each pack's own.

A length of pack is captured when it comes for the third time: the first compiles, and loads every kernel, the second is
watched, for a host that decides by numbers of the GPU or by chance would decide once for all. Graphs read and write
where they were captured: packs are copied to one place, and gradients are summed in buffers that outlive
`zero_grad(set_to_none=True)`.
"""

# ruff: noqa: N803, N806, N815 -- a tensor's name ends with its shape

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
"""That packs of more than one document are padded to."""
_WAITS = "called a synchronizing CUDA operation"
"""In torch's warning."""

_Length = tuple[int, int]
"""Tokens of a pack, and how many starts of documents it has with those of empty ones."""


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
        self._seen: Counter[_Length] = Counter()
        self._captured: dict[_Length, _Captured] = {}
        self._gradients: dict[torch.Tensor, torch.Tensor] = {}
        # The graphs use the same memory, one after another.
        self._pool = torch.cuda.graph_pool_handle()
        self._captures_more = True

    def hidden_states(self, batch: PackedBatch, compute: HiddenStates) -> torch.Tensor:
        """`compute(batch)`, to be followed by its backward before it is called again."""
        if not self._captures_more and not self._captured:
            return compute(batch)
        batch = replace(batch, cu_seqlens=padded_starts(batch.cu_seqlens, tokens=batch.input_ids.shape[1]))
        length = (batch.input_ids.shape[1], batch.cu_seqlens.shape[0])
        if self._is_to_be_captured(length):
            self._try_to_capture(length, batch, compute)
        if length in self._captured:
            return self._replayed(self._captured[length], batch)
        # Or there would be other gradients beside them.
        self._sum_in_buffers(list(self._gradients))
        self._seen[length] += 1
        return self._watched(batch, compute) if self._seen[length] == 2 else compute(batch)

    def release(self) -> bool:
        """Gives back their memory, for good; whether there was any. Gradients must have been dropped before."""
        had_any = bool(self._captured)
        self._captures_more = False
        self._captured.clear()
        self._gradients.clear()
        return had_any

    def _replayed(self, captured: _Captured, batch: PackedBatch) -> torch.Tensor:
        for place, value in zip(_read_by_layers(captured.batch), _read_by_layers(batch), strict=True):
            place.copy_(value)
        self._sum_in_buffers(captured.weights)
        hidden_1TD: torch.Tensor = _Replayed.apply(torch.zeros((), requires_grad=True), captured)
        return hidden_1TD

    def _watched(self, batch: PackedBatch, compute: HiddenStates) -> torch.Tensor:
        drawn_before = torch.get_rng_state()
        with _noting_what_waits_for_the_gpu() as noted:
            hidden_1TD = compute(batch)
        if noted:
            self._give_up("the model's code asks the GPU for numbers")
        elif not torch.equal(drawn_before, torch.get_rng_state()):
            self._give_up("the model's code draws random numbers that decide what is computed")
        return hidden_1TD

    def _is_to_be_captured(self, length: _Length) -> bool:
        return (
            self._captures_more
            and length not in self._captured
            and self._seen[length] >= 2
            and len(self._captured) < _MOST_LENGTHS
            and _has_room(self._device)
        )

    def _try_to_capture(self, length: _Length, batch: PackedBatch, compute: HiddenStates) -> None:
        stream = torch.cuda.current_stream(self._device)
        try:
            self._captured[length] = self._capture(batch, compute)
        except RuntimeError as error:
            self._give_up(" ".join(str(error).split()))
            # Torch stays on the stream of a capture that has failed, and its cache has copies that none has computed.
            torch.cuda.set_stream(stream)
            torch.clear_autocast_cache()
            # It takes its random generator for captured until another capture has ended well.
            number = torch.zeros((), device=self._device)
            with self._recording(torch.cuda.CUDAGraph(), pool=None):
                number.zero_()

    def _give_up(self, why: str) -> None:
        self._captures_more = False
        if not self._captured:
            self._gradients.clear()
        log.warning("layers are launched kernel by kernel, not as CUDA graphs: %s", why)

    def _capture(self, batch: PackedBatch, compute: HiddenStates) -> _Captured:
        batch = replace(
            batch,
            input_ids=batch.input_ids.clone(),
            position_ids=batch.position_ids.clone(),
            cu_seqlens=batch.cu_seqlens.clone(),
        )
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with self._recording(forward, pool=self._pool):
            hidden_1TD = compute(batch)
        weights = [self._weight_of(leaf) for leaf in leaves(hidden_1TD)]
        self._sum_in_buffers(weights)
        grad_1TD = torch.zeros_like(hidden_1TD)
        with self._recording(backward, pool=self._pool):
            torch.autograd.backward(hidden_1TD, grad_1TD)
        return _Captured(batch, hidden_1TD.detach(), grad_1TD, forward, backward, weights)

    def _recording(self, graph: torch.cuda.CUDAGraph, *, pool: Any) -> torch.cuda.graph:
        # Other threads, as that which saves, may go on using the GPU.
        return torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")

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


@contextmanager
def _noting_what_waits_for_the_gpu() -> Iterator[list[str]]:
    noted: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield noted
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    noted += [str(warning.message) for warning in caught if _WAITS in str(warning.message)]


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
    found: list[torch.Tensor] = []
    waiting: list[Any] = [result.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("AccumulateGrad"):
            found.append(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return found


def _read_by_layers(batch: PackedBatch) -> tuple[torch.Tensor, ...]:
    return batch.input_ids, batch.position_ids, batch.cu_seqlens


def _has_room(device: torch.device) -> bool:
    """For what a micro-batch takes, twice: in the graphs' own memory, and for all that is not captured."""
    held = torch.cuda.memory_allocated(device)
    taken = torch.cuda.max_memory_allocated(device) - held
    free_of_device, _ = torch.cuda.mem_get_info(device)
    return free_of_device + torch.cuda.memory_reserved(device) - held >= 2 * taken
