"""One save at a time, between two steps or beside them.

Called by the loop on every rank at the same places. A save beside the steps has two halves: the state is copied to
host memory while training waits, and a thread of each rank writes the copy. The threads meet in a process group of
their own, since two threads in one group would take each other's messages. What became of a save is told to all ranks
by `settle`, which the loop calls between steps; until then nobody counts on it. Where one lacks room, a checkpoint that
only the clock has saved makes room for it, and it is written again.
"""

import logging
import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from sft_trainer.run import RunState
from sft_trainer.storage.checkpoints import make_room, newest_step, published_or_undone
from sft_trainer.storage.fence import Fence
from sft_trainer.train.accumulate import shortage_reason
from sft_trainer.train.checkpoint import state_of, write_checkpoint
from sft_trainer.train.telling import RunTeller
from sft_trainer.train.world import World
from sftjob import names
from sftjob.failure import JobFailure, Reason
from sftjob.manifest import CheckpointManifest
from sftjob.progress import Stage

log = logging.getLogger(__name__)


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
        fits_again: Callable[[], bool],
        state: RunState,
        teller: RunTeller,
    ) -> None:
        """`state` and `teller` hear of each checkpoint that is published. `fits_again`: whether there is time to write
        one that has failed; called by all ranks, with the same answer."""
        self._state, self._teller = state, teller
        self._fits_again = fits_again
        self._sync_ledger = sync_ledger
        self._model, self._optimizer = model, optimizer
        self._world, self._fence, self._keep_last = world, fence, keep_last
        # All ranks: the threads' own group, over gloo on a GPU too, because what they talk about is in host memory.
        self._group = dist.new_group(backend="gloo", timeout=world.timeout) if world.size > 1 else None
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
        self._lacks_memory = False
        self._thread: threading.Thread | None = None

    def begin(self, manifest: CheckpointManifest, *, random_state: torch.Tensor, beside: bool) -> bool:
        """Returns when the model may change: `beside` when its state is copied, else when all is written.

        `random_state`: of this rank, at the end of the step. Whether it is written beside the steps: not where memory
        is too small for a copy.
        """
        assert self._thread is None, "at most one save at a time"
        state = state_of(self._model, self._optimizer, world=self._world, random_state=random_state)
        copy = self._copy_of(state) if beside else None
        beside = copy is not None
        self._tensors, self._begun = copy or state, manifest
        # A daemon: a run that fails meanwhile must not wait for it. What it leaves, the next attempt deletes.
        self._thread = threading.Thread(target=self._write, name="save", daemon=True)
        self._thread.start()
        if not beside:
            self._thread.join()
        return beside

    def _copy_of(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """None on every rank, now and later, where the memory of one is too small for it."""
        copy: dict[str, torch.Tensor] | None = None
        if not self._lacks_memory:
            try:
                copy = self._stager.stage(state)
            except RuntimeError as error:
                if shortage_reason(error) is None:
                    raise
                log.warning("no memory is left for a copy of the model's state (%s)", " ".join(str(error).split()))
            # All ranks: each decides alike.
            self._lacks_memory = self._world.max(float(copy is None)) > 0
            if self._lacks_memory:
                log.warning("checkpoints are saved between the steps from here on, as with saveMode: sync")
                self._stager.close()
        return None if self._lacks_memory else copy

    def has_ended(self, *, wait_seconds: float | None) -> bool:
        """On every rank; None waits until it has."""
        self._thread.join(wait_seconds)
        # All ranks: each has waited; where one has not ended, none goes on as if it had.
        return self._world.max(float(self._thread.is_alive())) == 0

    def settle(self, *, wait_seconds: float | None = None) -> bool:
        """Whether no save is on its way any more; None waits for it. All ranks together, with the same answer.

        Raises the save's JobFailure on every rank.
        """
        if self._thread is None:
            return True
        if not self.has_ended(wait_seconds=wait_seconds):
            return False
        self._thread = None
        manifest = self._written()
        self._tensors = {}
        self._count(manifest)
        log.info("saved %s in %.1f s", names.checkpoint_folder(manifest.step), self._state.save_seconds)
        return True

    def _written(self) -> CheckpointManifest:
        """As rank 0 has published it. Raises a rank's JobFailure on every rank."""
        while True:
            try:
                return self._world.from_each(self._published)[0]
            except JobFailure as failure:
                if failure.reason is not Reason.STORAGE_FULL or not self._has_made_room():
                    raise
            self._write()

    def _has_made_room(self) -> bool:
        """Whether a checkpoint that nobody asked for is deleted for this one. Nothing is left of what has failed, and
        what has failed once it was published counts as saved. All ranks have ended writing."""
        world, fence, step = self._world, self._fence, self._begun.step
        published = world.from_first(lambda: published_or_undone(fence, step))
        if published:
            self._count(published)
        fits = self._fits_again()
        # One rank of each folder: beside a bucket each node has its own.
        owns = world.is_first or (fence.remote is not None and world.leads_node)
        has_dropped = any(world.from_each(lambda: owns and make_room(fence, step, drops_unasked=fits)))
        if published or not has_dropped:
            return False
        if fence.remote is None:
            self._state.saved_step = world.from_first(lambda: newest_step(fence.storage))
        # In this stage bytes that move are no hang, wherever the first try was made.
        self._teller.progress(
            stage=Stage.SAVING, detail=names.checkpoint_folder(step), saved_step=self._state.saved_step
        )
        return True

    def _count(self, manifest: CheckpointManifest) -> None:
        """As saved."""
        state = self._state
        # The longest of all ranks, so that each decides alike whether another save still fits.
        state.save_seconds = self._world.max(self._seconds)
        state.saved_step = manifest.step
        if manifest.step == manifest.total_steps:
            state.final_digest = manifest.digest()
        self._teller.progress(saved_step=manifest.step)

    def _published(self) -> CheckpointManifest:
        if self._failure:
            raise self._failure
        return self._manifest

    def release(self) -> None:
        """The memory of the last copy: no other save is made beside the steps."""
        assert self._thread is None, "its copy is being written"
        self._stager.close()

    def _write(self) -> None:
        began = time.perf_counter()
        self._failure: Exception | None = None
        try:
            if self._world.device.type == "cuda":
                # A thread begins on GPU 0, and DCP waits for its copies on the stream of the thread's GPU alone.
                torch.cuda.set_device(self._world.device)
            self._manifest = write_checkpoint(
                self._tensors,
                world=self._world,
                group=self._group,
                fence=self._fence,
                manifest=self._begun,
                keep_last=self._keep_last,
                sync_ledger=self._sync_ledger,
            )
        except Exception as failure:  # raised again by `settle`, in the thread that can end the run
            self._failure = failure
        self._seconds = time.perf_counter() - began
