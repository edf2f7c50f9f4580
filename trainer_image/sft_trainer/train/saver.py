"""One save at a time, between two steps or beside them.

Called by the loop on every rank at the same places. A save beside the steps has two halves: the state is copied to
host memory while training waits, and a thread of each rank writes the copy. The threads meet in a process group of
their own, since two threads in one group would take each other's messages. What became of a save is told to all ranks
by `finish`, which the loop calls between steps; until then nobody counts on it.
"""

import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from sft_trainer.storage.fence import Fence
from sft_trainer.train.checkpoint import state_of, write_checkpoint
from sft_trainer.train.world import World
from sftjob.manifest import CheckpointManifest


class CheckpointSaver:
    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.AdamW,
        *,
        world: World,
        fence: Fence,
        keep_last: int,
        sync_ledger: Callable[[], None],
    ) -> None:
        self._sync_ledger = sync_ledger
        self._model, self._optimizer = model, optimizer
        self._world, self._fence, self._keep_last = world, fence, keep_last
        # All ranks: the threads' own group, over gloo on a GPU too, because what they talk about is in host memory.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        on_gpu = world.device.type == "cuda"
        # It keeps the copy's memory for the next one.
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=on_gpu,
            )
        )
        self._thread: threading.Thread | None = None

    @property
    def is_saving(self) -> bool:
        """The same on every rank."""
        return self._thread is not None

    def begin(self, manifest: CheckpointManifest, *, random_state: torch.Tensor, beside: bool) -> None:
        """Returns when the model may change: `beside` when its state is copied, else when all is written.

        `random_state`: of this rank, at the end of the step.
        """
        assert self._thread is None, "at most one save at a time"
        state = state_of(self._model, self._optimizer, world=self._world, random_state=random_state)
        if beside:
            state = self._stager.stage(state)
        self._failure: Exception | None = None
        # A daemon: a run that fails meanwhile must not wait for it. What it leaves, the next attempt deletes.
        self._thread = threading.Thread(target=self._write, args=(state, manifest), name="save", daemon=True)
        self._thread.start()
        if not beside:
            self._thread.join()

    def has_ended(self, *, wait_seconds: float | None) -> bool:
        """On every rank; None waits until it has."""
        self._thread.join(wait_seconds)
        # All ranks: each has waited; where one has not ended, none goes on as if it had.
        return self._world.max(float(self._thread.is_alive())) == 0

    def finish(self) -> tuple[CheckpointManifest, float]:
        """The manifest as published, and the seconds that the slowest rank has taken, once `has_ended` says so.

        Raises the save's JobFailure on every rank.
        """
        self._thread = None

        def published() -> CheckpointManifest:
            if self._failure:
                raise self._failure
            return self._manifest

        manifest = self._world.from_first(published)
        if self._failure:
            raise self._failure
        # The longest of all ranks, so that each decides alike whether another save still fits.
        return manifest, self._world.max(self._seconds)

    def release(self) -> None:
        """The memory of the last copy: no other save is made beside the steps."""
        assert self._thread is None, "its copy is being written"
        self._stager.close()

    def _write(self, state: dict[str, torch.Tensor], manifest: CheckpointManifest) -> None:
        began = time.perf_counter()
        try:
            if self._world.device.type == "cuda":
                # A thread begins on GPU 0, and DCP waits for its copies on the stream of the thread's GPU alone.
                torch.cuda.set_device(self._world.device)
            self._manifest = write_checkpoint(
                state,
                world=self._world,
                group=self._group,
                fence=self._fence,
                manifest=manifest,
                keep_last=self._keep_last,
                sync_ledger=self._sync_ledger,
            )
        except Exception as failure:  # raised again by `finish`, in the thread that can end the run
            self._failure = failure
        self._seconds = time.perf_counter() - began
