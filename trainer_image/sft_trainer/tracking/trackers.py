"""A run's trackers: each in a thread of its own, so that no network and no disk of theirs ever holds up a step.

Called by `RunTeller` on rank 0 with values by tag. A tracker that fails is told once, and training goes on without it:
its curves are a copy of what metrics.jsonl has.
"""

import importlib
import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from sft_trainer.tracking.run import EVALUATION_LOSS, ToldSteps, TrackedRun
from sftjob.options import Tracker

_MOST_WAITING = 10_000
"""Steps that a tracker may be behind: what comes after is lost to it."""
_END_SECONDS = 30.0
"""For all of them together, at the end of a run, to send what they still have."""
_STOP_SECONDS = 5.0
"""Where a run is stopped, or has failed."""
_CLASSES = {
    "tensorboard": ("sft_trainer.tracking.tensorboard", "TensorBoard"),
    "wandb": ("sft_trainer.tracking.weights_and_biases", "WeightsAndBiases"),
    "trackio": ("sft_trainer.tracking.trackio_run", "Trackio"),
}
"""Imported by the thread: their libraries take seconds, or are not there."""
_GO_BACK = frozenset({"tensorboard"})
"""Those that forget what earlier attempts have told of steps that are trained again. Of the others one refuses to go
back, one would draw a step twice: what was told stays as it was.
"""

log = logging.getLogger(__name__)


class _Open(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    def __init__(self, report_to: Sequence[Tracker], run: TrackedRun) -> None:
        self._threads = [_TrackerThread(tracker, run) for tracker in dict.fromkeys(report_to)]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Returns at once."""
        for thread in self._threads:
            thread.put((step, values))

    def close(self, *, at_the_end: bool) -> None:
        """Returns when they have everything, or in some seconds: less where the run has not come to its end."""
        deadline = time.monotonic() + (_END_SECONDS if at_the_end else _STOP_SECONDS)
        for thread in self._threads:
            thread.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class _TrackerThread(threading.Thread):
    def __init__(self, tracker: Tracker, run: TrackedRun) -> None:
        # A daemon: a library that hangs must not keep the process.
        super().__init__(name=f"tracker-{tracker}", daemon=True)
        self._tracker, self._run = tracker, run
        self._waiting: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue()
        self._is_at_work = True
        self.start()

    def put(self, item: tuple[int, Mapping[str, float]] | None) -> None:
        if self._is_at_work and (item is None or self._waiting.qsize() < _MOST_WAITING):
            self._waiting.put(item)

    def run(self) -> None:
        try:
            self._forward()
        except Exception as error:  # of whatever a library does; it is told, and ends nothing but the curves
            log.warning("reportTo: %s failed, and training goes on without it: %r", self._tracker, error)
        finally:
            self._is_at_work = False

    def _forward(self) -> None:
        module, name = _CLASSES[self._tracker]
        opened: _Open = getattr(importlib.import_module(module), name)(self._run)
        told = ToldSteps() if self._tracker in _GO_BACK else self._run.told_before
        while (item := self._waiting.get()) is not None:
            step, values = item
            # A step may have been told, and its evaluation not: a run is stopped in one.
            if step > (told.evaluated if EVALUATION_LOSS in values else told.trained):
                opened.log(step, values)
        opened.close()
