"""Where the ranks of this node stand: their stacks into storage, and which of them holds the others up.

Called by `watch` when none of them goes on.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sft_trainer.launcher.processes import native_threads, process_state
from sft_trainer.marks import Mark
from sft_trainer.stacks import (
    Frame,
    ask_for_stacks,
    frames_by_thread,
    stacks_path,
    told,
    waits_for_others,
    working_thread,
)
from sftjob.standstill import Standstill

_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Standing:
    """A rank that does not go on."""

    mark: Mark
    state: str
    frames: list[Frame]
    """Innermost first; empty where it did not answer."""
    text: str
    """All that it answered."""
    native: list[str]


def gather(scratch: Path, marks: Sequence[Mark], *, parent: int, wait_seconds: float) -> list[Standing]:
    """Asks every rank, and waits that long for what they answer. Wakes those that a signal has stopped."""
    states = {mark: state for mark in marks if (state := process_state(mark.pid, parent=parent))}
    native = {mark: native_threads(mark.pid) for mark in states}
    for mark, state in states.items():
        ask_for_stacks(mark.pid, is_stopped=state == "T")
    texts = _answers({mark: stacks_path(scratch, mark.rank) for mark in states}, wait_seconds=wait_seconds)
    return [
        Standing(mark, state, working_thread(frames_by_thread(texts[mark]), mark.thread), texts[mark], native[mark])
        for mark, state in states.items()
    ]


def _answers(paths: dict[Mark, Path], *, wait_seconds: float) -> dict[Mark, str]:
    """Once none of them grows any more: an answer has no end of its own."""
    deadline = time.monotonic() + wait_seconds
    before: dict[Mark, str] = {}
    while True:
        texts = {mark: path.read_text(errors="replace") for mark, path in paths.items()}
        if (texts == before and all(texts.values())) or time.monotonic() >= deadline:
            return texts
        before = texts
        time.sleep(_LOOK_SECONDS)


def standstill_of(standings: Sequence[Standing], *, seconds: float, stacks: str | None) -> Standstill:
    """By the rank that is furthest behind; where nothing tells the ranks apart, no rank is named."""
    found = [_standstill(one, seconds=seconds, stacks=stacks) for one in standings]
    first = min(found, key=lambda one: one.behind)
    alone = [one.behind for one in found].count(first.behind) == 1
    return first if alone else first.model_copy(update={"rank": None})


def _standstill(standing: Standing, *, seconds: float, stacks: str | None) -> Standstill:
    mark = standing.mark
    return Standstill(
        rank=mark.rank,
        stage=mark.stage,
        step=mark.step,
        place=mark.place,
        waits=waits_for_others(standing.frames),
        state=standing.state,
        seconds=round(seconds),
        frames=told(standing.frames),
        stacks=stacks,
    )


def page(standings: Sequence[Standing], *, seconds: float) -> str:
    """All that was found, for people."""
    parts = [f"None of these ranks had gone on for {seconds:.0f} s.\n"]
    for one in standings:
        mark = one.mark
        parts.append(
            f"\nrank {mark.rank}: {mark.stage} after step {mark.step}, mark {mark.place}; process {mark.pid}, state "
            f"{one.state}, main thread 0x{mark.thread:016x}\n"
        )
        parts += [f"  thread {line}\n" for line in one.native]
        parts.append(one.text or "It gave no stack.\n")
    return "".join(parts)
