"""The Python stacks of a rank, on request: of all its threads, also while it hangs in native code.

The rank listens from its first moment (`child`); the launcher asks. A signal and Python's own fault handler do it: no
debugger, no right to trace.
"""

import contextlib
import faulthandler
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import sft_trainer

_SIGNAL = signal.SIGRTMAX - 3
"""Of the real-time signals, which no library uses by itself: SIGUSR1 and SIGUSR2 are the script's to use."""
_FRAMES = 4
"""Of a rank, in its record."""

_OURS = str(Path(sft_trainer.__file__).parent)
_LIBRARY = re.compile(r"/(site|dist)-packages/|/lib/python3\.\d+/|^<")
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$')


@dataclass(frozen=True)
class Frame:
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({'/'.join(self.file.split('/')[-2:])}:{self.line})"

    @property
    def is_of_library(self) -> bool:
        """Neither the user's nor ours."""
        return not self.file.startswith(_OURS) and bool(_LIBRARY.search(self.file))

    @property
    def waits_for_thread(self) -> bool:
        return self.file.endswith("/threading.py")


def stacks_path(scratch: Path, rank: int) -> Path:
    return scratch / "stacks" / f"rank-{rank}.txt"


def answer_with_stacks(scratch: Path, rank: int) -> None:
    """From now on this process may be asked; before, the signal would end it."""
    path = stacks_path(scratch, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    faulthandler.register(_SIGNAL, path.open("w"), all_threads=True)


def ask_for_stacks(pid: int, *, is_stopped: bool) -> None:
    """`is_stopped`: by a signal. Such a process answers only when it is woken, and does so before anything else.

    One that has become another program (`exec`) does not listen any more, and the signal would end it.
    """
    with contextlib.suppress(ProcessLookupError):
        if not _listens(pid):
            return
        os.kill(pid, _SIGNAL)
        if is_stopped:
            os.kill(pid, signal.SIGCONT)


def _listens(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return False
    caught = next(line for line in lines if line.startswith("SigCgt:")).split()[1]
    return bool(int(caught, 16) >> (_SIGNAL - 1) & 1)


def frames_by_thread(text: str) -> dict[int, list[Frame]]:
    """Of what a rank has answered: by identifier, innermost first."""
    threads: dict[int, list[Frame]] = {}
    frames: list[Frame] = []
    for line in text.splitlines():
        if thread := _THREAD.match(line):
            frames = threads[int(thread[1], 16)] = []
        elif frame := _FRAME.match(line):
            frames.append(Frame(frame[1], int(frame[2]), frame[3]))
    return threads


def working_thread(threads: dict[int, list[Frame]], main: int) -> list[Frame]:
    """The main thread's frames; where that one only waits for another thread of ours, those of the other."""
    frames = threads.get(main, [])
    if frames and frames[0].waits_for_thread:
        for other in threads.values():
            is_ours = any(frame.file.startswith(_OURS) for frame in other)
            if other and is_ours and not other[0].waits_for_thread:
                return other
    return frames


def waits_for_others(frames: list[Frame]) -> bool:
    """It is inside of a collective, as the innermost frames tell."""
    return any("/torch/distributed/" in frame.file for frame in frames[:4])


def told(frames: list[Frame]) -> list[str]:
    """The innermost frame, and above it those of the user's code and ours."""
    chosen = frames[:1] + [frame for frame in frames[1:] if not frame.is_of_library]
    return [str(frame)[:120] for frame in chosen[:_FRAMES]]
