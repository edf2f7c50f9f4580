"""Watches the ranks of this node while torchrun runs: `look` is called twice a second by `Children.run`.

A rank that goes on makes marks. Where all ranks of all nodes have made none for longer than their sections may take,
the launcher keeps their stacks and ends them: a hang. Each launcher sees its own ranks; the files of stacks, in the
storage that they share, say which nodes stand still, and only when all do is any of them ended. The deadline that a
user has set is the operator's to keep. Where the launcher is told to stop and its ranks do not react, it keeps their
stacks too.
"""

import logging
import time
from pathlib import Path

from sft_trainer.launcher.children import Children
from sft_trainer.launcher.placement import Placement
from sft_trainer.launcher.processes import moved_bytes, process_state
from sft_trainer.launcher.sections import RankTimes
from sft_trainer.launcher.standing import gather, page, standstill_of
from sft_trainer.marks import Mark, read_marks
from sft_trainer.storage import fence
from sft_trainer.storage.folders import write_atomically
from sftjob import names
from sftjob.plan import LaunchPlan
from sftjob.standstill import Standstill

log = logging.getLogger("sft_trainer.launcher")

_ANSWER_SECONDS = 15.0
_OTHERS_SECONDS = 5.0
"""Between two looks at what other nodes have left in storage."""


class RankWatch:
    def __init__(self, plan: LaunchPlan, placement: Placement, children: Children) -> None:
        self._plan, self._placement, self._children = plan, placement, children
        self._patience = 2 ** fence.hangs_before(plan, node_rank=placement.node_rank)
        self._learns = plan.spec.run_policy.progress_deadline_seconds is None
        self._times: dict[int, RankTimes] = {}
        self._looked_at = self._others_at = time.monotonic()
        self._at_stop: list[Mark] | None = None
        self._has_asked_at_stop = False
        self._stood: list[Mark] = []
        self.standstill: Standstill | None = None
        self.is_hang = False
        """This launcher has ended its ranks, since none went on."""

    def look(self) -> None:
        now = time.monotonic()
        gap, self._looked_at = now - self._looked_at, now
        marks = self._living_marks()
        for mark in marks:
            moved = moved_bytes(mark.pid)
            if mark.rank in self._times:
                self._times[mark.rank].see(mark, moved_bytes=moved, gap_seconds=gap)
            else:
                self._times[mark.rank] = RankTimes(mark, moved_bytes=moved, patience=self._patience)
        if not marks or self.is_hang:
            return
        if self.standstill is not None and not self._has_asked_at_stop:
            self._wait_for_others(marks, now)
        elif self._children.stopping:
            self._look_at_stop(marks)
        elif self._learns and self._is_over(marks, now):
            self._keep_stacks(marks, wait_seconds=_ANSWER_SECONDS)
            self._wait_for_others(marks, now)

    def _living_marks(self) -> list[Mark]:
        torchrun = self._children.pid
        return [mark for mark in read_marks(self._placement.scratch) if process_state(mark.pid, parent=torchrun)]

    def _is_over(self, marks: list[Mark], now: float) -> bool:
        """No rank has made a sign for its limit; or for half of it, where another node has waited longer."""
        share = min(self._times[mark.rank].silent_share for mark in marks)
        if share >= 1:
            return True
        if share < 0.5 or now - self._others_at < _OTHERS_SECONDS:
            return False
        self._others_at = now
        return any(self._stacks_of(node).exists() for node in range(self._plan.spec.compute.nodes))

    def _wait_for_others(self, marks: list[Mark], now: float) -> None:
        """Ends the ranks where those of all nodes stand still; takes it back where one here has gone on."""
        nodes = range(self._plan.spec.compute.nodes)
        if marks != self._stood:
            self.standstill = None
            self._stacks_of(self._placement.node_rank).unlink(missing_ok=True)
        elif len(nodes) == 1:
            self._end()
        elif now - self._others_at >= _OTHERS_SECONDS:
            self._others_at = now
            if all(self._stacks_of(node).exists() or fence.has_left(self._plan, node_rank=node) for node in nodes):
                self._end()

    def _end(self) -> None:
        self.is_hang = True
        self._children.kill()

    def _look_at_stop(self, marks: list[Mark]) -> None:
        """Once, when half of the time for saving is over, and of ranks none of which has moved since the signal."""
        if self._at_stop is None:
            self._at_stop = marks
        half = self._children.shutdown_seconds / 2
        if marks == self._at_stop and self._children.stopped_seconds >= half and not self._has_asked_at_stop:
            self._has_asked_at_stop = True
            self._keep_stacks(marks, wait_seconds=half / 2)

    def _keep_stacks(self, marks: list[Mark], *, wait_seconds: float) -> None:
        seconds = min(self._times[mark.rank].silent_seconds for mark in marks)
        standings = gather(self._placement.scratch, marks, parent=self._children.pid, wait_seconds=wait_seconds)
        if not standings:
            return
        path, stacks = self._stacks_of(self._placement.node_rank), None
        try:
            # Where what counts is in a bucket, the ledger is the first that makes the folder here.
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, page(standings, seconds=seconds))
            stacks = f"{self._plan.spec.storage_uri}/{path.relative_to(self._plan.storage)}"
        except OSError as error:
            # A full volume must not keep a hang of this node alive.
            log.warning("the stacks could not be kept: %s\n%s", error, page(standings, seconds=seconds))
        self._stood = marks
        self.standstill = standstill_of(standings, seconds=seconds, stacks=stacks)
        log.warning("no rank goes on: %s", self.standstill.told())

    def _stacks_of(self, node_rank: int) -> Path:
        return names.stacks(Path(self._plan.storage), self._plan.attempt, node_rank)
