"""TensorBoard's event files, by tensorboardX: `<storage>/tensorboard/`, a file an attempt.

One folder is one run in TensorBoard. It reads a folder's files by name, the time in front, and where one begins with
the start of a session at step K it forgets what earlier files say of K and later steps: a resumed run is one curve, and
what a superseded attempt still writes into its own file does not show. So a name is later than those in the folder,
whatever this machine's clock says. The library's own writers hide a full disk in a thread, or name files by the clock
alone: a part of them is used.
"""

import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from sft_trainer.tracking.run import TrackedRun
from sftjob import names

_PREFIX = "events.out.tfevents."


class TensorBoard:
    def __init__(self, run: TrackedRun) -> None:
        """Raises OSError, as `log` does."""
        folder = run.storage / names.TENSORBOARD
        folder.mkdir(exist_ok=True)
        name = f"{_PREFIX}{_later_second(folder)}.{socket.gethostname()}{names.event_suffix(run.attempt)}"
        self._events = RecordWriter(str(folder / name))
        self._write(0, file_version="brain.Event:2")
        self._write(run.resumed_from + 1, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._write(step, summary=summary)

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, **what: str | SessionLog | Summary) -> None:
        self._events.write(Event(wall_time=time.time(), step=step, **what).SerializeToString())
        # Whatever kills the process, the kernel has it.
        self._events.flush()


def _later_second(folder: Path) -> int:
    """This one, or the one after the latest by which a file there is named."""
    named = [path.name.removeprefix(_PREFIX).partition(".")[0] for path in folder.glob(f"{_PREFIX}*")]
    return max([int(time.time()), *(int(second) + 1 for second in named if second.isdecimal())])
