"""Where each rank is, in a file of the launcher's folder that rank and launcher both map into memory.

A mark on the way through a step costs no system call and never waits for a disk. Written by `child` and by the
training loop, read by the launcher twice a second. A mark has no time: how long it stands is the reader's to count.
"""

import mmap
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from sftjob.progress import Stage

_FORM = struct.Struct("=6q")
_STAGES = tuple(Stage)


@dataclass(frozen=True)
class Mark:
    rank: int
    pid: int
    thread: int
    """Identifier of its main thread, as its stacks name it."""
    stage: Stage
    step: int
    """The last finished one."""
    place: int
    """Counts what all ranks do alike: a rank with a smaller one is behind the others."""
    signs: int
    """Counts what one rank does alone."""


class Marker:
    """This process's end of it. Any number of them go on from one another."""

    def __init__(self, scratch: Path, rank: int) -> None:
        path = _path(scratch, rank)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(_FORM.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FORM.size)

    def mark(self, stage: Stage | None = None, *, step: int | None = None, alone: bool = False) -> None:
        """What isn't named stays. `alone`: the other ranks do not come by here."""
        _, _, known_stage, known_step, place, signs = _FORM.unpack_from(self._memory)
        _FORM.pack_into(
            self._memory,
            0,
            os.getpid(),
            threading.main_thread().ident,
            known_stage if stage is None else _STAGES.index(stage),
            known_step if step is None else step,
            place if alone else place + 1,
            signs + alone,
        )


def read_marks(scratch: Path) -> list[Mark]:
    """Of the ranks of this node that have begun, in their order."""
    marks = []
    for path in sorted(_folder(scratch).glob("rank-*"), key=_rank):
        content = path.read_bytes()
        # A rank that has just begun has a file without a mark, or without room for one.
        if any(content):
            pid, thread, stage, step, place, signs = _FORM.unpack(content)
            marks.append(Mark(_rank(path), pid, thread, _STAGES[stage], step, place, signs))
    return marks


def _folder(scratch: Path) -> Path:
    return scratch / "marks"


def _path(scratch: Path, rank: int) -> Path:
    return _folder(scratch) / f"rank-{rank}"


def _rank(path: Path) -> int:
    return int(path.name.removeprefix("rank-"))
