"""TensorBoard's event files, by tensorboardX: `<storage>/tensorboard/`, a file an attempt.

One folder is one run in TensorBoard. It reads a folder's files by name, the time in front, and where one begins with
the start of a session at step K it forgets what earlier files say of K and later steps: a resumed run is one curve, and
what a superseded attempt still writes into its own file does not show. The library's own writer hides a full disk in a
thread of its own, so its parts are used.
"""

import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from sft_trainer.tracking.run import TrackedRun
from sftjob import names


class TensorBoard:
    def __init__(self, run: TrackedRun) -> None:
        """Raises OSError, as `log` does."""
        folder = run.storage / names.TENSORBOARD
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"), names.event_suffix(run.attempt))
        self._write(run.resumed_from + 1, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._write(step, summary=summary)

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, **what: SessionLog | Summary) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **what))
        # Whatever kills the process, the kernel has it.
        self._events.flush()
