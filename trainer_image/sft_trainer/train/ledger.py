"""Every rank's own word for the samples that it has fed to the model, step by step: see `sftjob.ledger`.

Called by the loop: `note` after each micro-batch's backward, `drop_step` where the step begins anew, `close_step` after
the update, `sync` before a checkpoint is published.
"""

import os
from pathlib import Path

import numpy as np

from sft_trainer.datasets.pack import Packs
from sft_trainer.packed import PackedBatch
from sftjob import names
from sftjob.failure import JobFailure, storage_reason
from sftjob.ledger import EpochContent, FedPack, LedgerHead, LedgerLine


class Ledger:
    def __init__(self, storage: Path, attempt: int, *, rank: int, head: LedgerHead) -> None:
        path = names.ledger(storage, attempt, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Never closed: a save that outlives the run may still sync it.
        self._file = path.open("a", buffering=1)
        self._packs: list[FedPack] = []
        self._write(head)

    def note(self, batch: PackedBatch) -> None:
        if batch.epoch is None:
            return
        samples, begins = ([piece[place] for piece in batch.pieces] for place in (0, 1))
        self._packs.append(FedPack(epoch=batch.epoch, samples=samples, begins=begins if any(begins) else []))

    def drop_step(self) -> None:
        """What was noted of a step that begins anew."""
        self._packs = []

    def close_step(self, step: int) -> None:
        self._write(LedgerLine(step=step, packs=self._packs))
        self._packs = []

    def _write(self, line: LedgerHead | LedgerLine) -> None:
        """Raises JobFailure: STORAGE_FULL is met here first, for a line is written more often than a checkpoint."""
        try:
            self._file.write(line.to_json() + "\n")
        except OSError as error:
            raise JobFailure(
                storage_reason(error),
                f"spec.checkpoint.storage: writing {self._file.name} failed ({error}); free some room, or check the "
                "volume",
            ) from error

    def sync(self) -> None:
        """To disk, from any thread. The kernel has every line already, but a node can die with its kernel."""
        os.fsync(self._file.fileno())


def epoch_content(packs: Packs) -> EpochContent:
    """Of the packs as they are: once an epoch each is fed."""
    is_rest = packs.begins > 0
    ids, times = np.unique(packs.members[~is_rest], return_counts=True)
    is_last = np.append((np.diff(ids) != 1) | (np.diff(times) != 0), True)
    is_first = np.concatenate(([True], is_last[:-1]))
    runs = zip(ids[is_first].tolist(), ids[is_last].tolist(), times[is_last].tolist(), strict=True)
    rests = zip(packs.members[is_rest].tolist(), packs.begins[is_rest].tolist(), strict=True)
    return EpochContent(samples=list(runs), cut=sorted(rests))
