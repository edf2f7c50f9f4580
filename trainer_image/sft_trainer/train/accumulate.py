"""The gradient of a step, summed over its micro-batches, which become smaller where memory is too small for them.

Called by the loop. A micro-batch is a pack until memory runs out in one; from then on packs go through the model in
parts (`BatchStream.micro_batches`), and the sum stays what it was.
"""

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sft_trainer.datasets.batch import BatchStream
from sft_trainer.model.forward import release_memory
from sft_trainer.packed import PackedBatch
from sft_trainer.train.checkpoint import set_random_state
from sft_trainer.train.ledger import Ledger
from sft_trainer.train.telling import RunTeller
from sft_trainer.train.world import World
from sftjob.failure import JobFailure, Reason

log = logging.getLogger(__name__)

MEMORY_REMEDY = (
    "set spec.training.fsdp.recomputeSelectively, lower spec.data.packing.maxLength, raise "
    "spec.training.fsdp.recomputeRatio, train with spec.training.lora, or use more ranks"
)
_CPU_SHORTAGE_SIGNS = ("DefaultCPUAllocator: can't allocate memory", "Registering memory failed with cudaError")
"""Of the allocator, and of torch's copies of a GPU's tensors, which are held in memory that can't be swapped out."""
_GPU_SHORTAGE_SIGNS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
)
"""Of the allocator in an error of the compiler, of the driver, of cuBLAS for its workspace, of NCCL for buffers."""


@dataclass(frozen=True)
class Accumulated:
    loss_sum: torch.Tensor
    """A scalar: this rank's, over trained tokens."""
    micro_batches: int
    data_seconds: float
    """That it took to make them."""


@dataclass(frozen=True)
class _Shortage:
    """Of memory, in forward or backward of `batch`. The exception is gone: its frames hold what was computed."""

    batch: PackedBatch
    reason: Reason
    message: str
    """The allocator's."""

    def failure(self, what_follows: str) -> JobFailure:
        documents, tokens = max(1, len(self.batch.pieces)), self.batch.input_ids.shape[1]
        of = "one document" if documents == 1 else f"{documents} documents"
        return JobFailure(
            self.reason, f"memory ran out in a micro-batch of {tokens} tokens, {of}; {what_follows} ({self.message})"
        )


class Accumulation:
    def __init__(
        self,
        model: torch.nn.Module,
        *,
        stream: BatchStream,
        world: World,
        ledger: Ledger,
        teller: RunTeller,
        halvings: int,
        resumes: bool,
    ) -> None:
        """`resumes`: whether a next attempt knows of this one, whoever starts it."""
        self._model, self._stream, self._world = model, stream, world
        self._ledger, self._teller = ledger, teller
        self._resumes = resumes
        self.halvings = halvings
        """How often packs are halved by now."""

    @property
    def micro_batch_tokens(self) -> int | None:
        """At most, but for a document that is longer. None: whole packs."""
        return max(1, self._stream.most_tokens(self.halvings)) if self.halvings else None

    def add_gradient(self, step: int, *, random_state: torch.Tensor, between: Callable[[], None]) -> Accumulated:
        """Of all micro-batches of this rank; `between` is called after each. `random_state`: before the step.

        Raises JobFailure(OUT_OF_MEMORY or GPU_OUT_OF_MEMORY), as `_halve` says, and whatever `between` raises.
        """
        while True:
            began = time.perf_counter()
            batches = self._stream.micro_batches(step, halvings=self.halvings)
            data_seconds = time.perf_counter() - began
            # One denominator for the whole step, known to every rank from the plan of packs.
            summed = self._sum(batches, trained_tokens=max(1, self._stream.trained_tokens(step)), between=between)
            if not isinstance(summed, _Shortage):
                return Accumulated(summed, len(batches), data_seconds)
            # How much of the last micro-batch is in the gradients, nobody knows.
            self._model.zero_grad(set_to_none=True)
            if not release_memory(self._model):
                self._halve(step, summed)
            self._ledger.drop_step()
            set_random_state(random_state, self._world.device)
            _free_memory(self._world.device)

    def _sum(
        self, batches: list[PackedBatch], *, trained_tokens: int, between: Callable[[], None]
    ) -> torch.Tensor | _Shortage:
        loss_sum = torch.zeros((), device=self._world.device)
        self._teller.mark()
        for batch in batches:
            try:
                loss_sum += self._add_gradient_of(batch, trained_tokens=trained_tokens)
            except RuntimeError as error:
                reason = shortage_reason(error)
                if reason is None:
                    raise
                return _Shortage(batch, reason, " ".join(str(error).split()))
            self._ledger.note(batch)
            self._teller.mark()
            between()
        return loss_sum

    def _add_gradient_of(self, batch: PackedBatch, *, trained_tokens: int) -> torch.Tensor:
        """Returns its summed loss, without the graph: what of that is alive would keep the next pack from capture."""
        loss = self._model(batch.to(self._world.device))
        (loss / trained_tokens).backward()
        return loss.detach()

    def _halve(self, step: int, shortage: _Shortage) -> None:
        """Raises JobFailure where nothing is left to halve; and among several ranks, as the others are waiting in
        collectives that this one has left: there the next attempt begins with smaller micro-batches."""
        halvings = self._stream.halvings_for(shortage.batch, halvings=self.halvings)
        if halvings is None:
            raise shortage.failure(f"nothing is left to halve: {MEMORY_REMEDY}")
        if self._world.size > 1:
            who = "the next attempt" if self._resumes else "start again with auto_resume=True, which then"
            raise shortage.failure(f"{who} takes parts of packs; to avoid that, {MEMORY_REMEDY}")
        self.halvings = halvings
        log.warning(
            "step %d: memory ran out in a micro-batch of %d tokens; from here on packs are trained in parts of at most "
            "%d tokens, with the same global batch and loss",
            step,
            shortage.batch.input_ids.shape[1],
            self.micro_batch_tokens,
        )
        self._teller.progress(micro_batch_tokens=self.micro_batch_tokens)


def shortage_reason(error: BaseException) -> Reason | None:
    """None for any other error. Torch has an exception of its own for its allocator of a GPU's memory alone."""
    if isinstance(error, torch.OutOfMemoryError):
        return Reason.GPU_OUT_OF_MEMORY
    if not isinstance(error, RuntimeError):
        return None
    if any(sign in str(error) for sign in _GPU_SHORTAGE_SIGNS):
        return Reason.GPU_OUT_OF_MEMORY
    return Reason.OUT_OF_MEMORY if any(sign in str(error) for sign in _CPU_SHORTAGE_SIGNS) else None


def _free_memory(device: torch.device) -> None:
    """Of what nobody holds any more, for tensors of other sizes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
