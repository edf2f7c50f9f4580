"""Watches the ranks of this node while torchrun runs: `look` is called twice a second by `Children.run`.

A rank that goes on makes marks. Where all ranks of all nodes have made none for longer than their sections may take,
the launcher keeps their stacks and ends them: a hang. Each launcher sees its own ranks; the stacks that are kept in the
storage say which nodes stand still, and only when all do is any of them ended. The deadline that a
user has set is the operator's to keep. Where the launcher is told to stop and its ranks do not react, it keeps their
stacks too.
"""

import logging
import time

from sft_trainer.launcher.children import Children
from sft_trainer.launcher.placement import Placement
from sft_trainer.launcher.processes import moved_bytes, process_state
from sft_trainer.launcher.sections import RankTimes
from sft_trainer.launcher.standing import gather, page, standstill_of
from sft_trainer.marks import Mark, read_marks
from sft_trainer.storage import fence, nodes
from sftjob.failure import JobFailure
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
        times = [self._times[mark.rank] for mark in marks]
        # A rank of which nobody knows what it does in the script says nothing of those that wait for it.
        share = min((one.silent_share for one in times if one.limit_seconds is not None), default=0.0)
        if share >= 1:
            return True
        if share < 0.5 or now - self._others_at < _OTHERS_SECONDS:
            return False
        self._others_at = now
        return any(self._stands_still(node) for node in range(self._plan.spec.compute.nodes))

    def _wait_for_others(self, marks: list[Mark], now: float) -> None:
        """Ends the ranks where those of all nodes stand still; takes it back where one here has gone on."""
        all_nodes = range(self._plan.spec.compute.nodes)
        if marks != self._stood:
            self._take_back()
        elif len(all_nodes) == 1:
            self._end()
        elif now - self._others_at >= _OTHERS_SECONDS:
            self._others_at = now
            if all(self._stands_still(node, or_has_left=True) for node in all_nodes):
                self._end()

    def _take_back(self) -> None:
        try:
            nodes.take_stacks_back(self._plan, node_rank=self._placement.node_rank)
        except JobFailure as failure:
            # Others may end their ranks for what stands there: it is tried again at the next look.
            log.warning("the stacks could not be taken back: %s", failure)
        else:
            self.standstill = None

    def _stands_still(self, node_rank: int, *, or_has_left: bool = False) -> bool:
        """By what its launcher has left in storage, as far as that can be read."""
        try:
            return nodes.stands_still(self._plan, node_rank=node_rank) or (
                or_has_left and fence.has_left(self._plan, node_rank=node_rank)
            )
        except JobFailure as failure:
            log.warning("whether node %d stands still could not be asked: %s", node_rank, failure)
            return False

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
        text, stacks = page(standings, seconds=seconds), None
        try:
            stacks = nodes.tell_stacks(self._plan, text, node_rank=self._placement.node_rank)
        except JobFailure as failure:
            # A full volume must not keep a hang of this node alive.
            log.warning("the stacks could not be kept: %s\n%s", failure, text)
        self._stood = marks
        self.standstill = standstill_of(standings, seconds=seconds, stacks=stacks)
        log.warning("no rank goes on: %s", self.standstill.told())
