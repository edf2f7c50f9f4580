"""Which rank holds the others up, by marks and stacks: made up, and of real processes that stand still."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sft_trainer.launcher.processes import moved_bytes, process_state
from sft_trainer.launcher.standing import Standing, gather, page, standstill_of
from sft_trainer.marks import Mark, Marker, read_marks
from sft_trainer.stacks import Frame, frames_by_thread, told, waits_for_others, working_thread
from sftjob.progress import Stage
from sftjob.standstill import Standstill
from tests.sft_trainer.download_node import until

STACKS = """\
Thread 0x00007f0a6b7fe6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/opt/venv/lib/python3.11/site-packages/tqdm/_monitor.py", line 60 in run

Current thread 0x00007f0b9a0d1740 (most recent call first):
  File "/opt/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 2963 in all_reduce
  File "/opt/venv/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/home/me/loss.py", line 12 in mean
  File "/opt/venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1778 in _call_impl
  File "/home/me/train.py", line 40 in <module>
"""
MAIN = 0x7F0B9A0D1740


def a_mark(rank: int, place: int) -> Mark:
    return Mark(rank=rank, pid=100 + rank, thread=1, stage=Stage.TRAINING, step=41, place=place, signs=0)


IN_COLLECTIVE = [Frame("/v/site-packages/torch/distributed/distributed_c10d.py", 2963, "all_reduce")]
IN_LOOP = [Frame("/home/me/data.py", 12, "read")]


def standing(rank: int, *, place: int, state: str = "S", frames: list[Frame] = IN_COLLECTIVE) -> Standing:
    return Standing(a_mark(rank, place), state, frames, "text", [])


def behind(*standings: Standing) -> tuple[int | None, bool]:
    found = standstill_of(standings, seconds=300.4, stacks=None)
    return found.rank, found.waits


def test_a_stack_is_read_innermost_first_and_told_without_libraries_in_between() -> None:
    threads = frames_by_thread(STACKS)
    assert [len(frames) for frames in threads.values()] == [2, 5]
    frames = threads[MAIN]
    assert waits_for_others(frames)
    assert told(frames) == [
        "all_reduce (distributed/distributed_c10d.py:2963)",
        "mean (me/loss.py:12)",
        "<module> (me/train.py:40)",
    ]


def test_the_rank_that_is_furthest_behind_holds_the_others_up() -> None:
    assert behind(standing(0, place=57), standing(1, place=56), standing(2, place=57)) == (1, True)
    assert behind(standing(0, place=57), standing(1, place=57, frames=IN_LOOP)) == (1, False)
    assert behind(standing(0, place=57, frames=IN_LOOP), standing(1, place=57, state="T")) == (1, True)


def test_where_nothing_tells_them_apart_no_rank_is_blamed() -> None:
    assert behind(standing(0, place=57), standing(1, place=57)) == (None, True)
    assert behind(standing(4, place=57)) == (4, True)


def test_what_is_told_has_rank_place_state_frames_and_file() -> None:
    found = standstill_of(
        [standing(0, place=57), standing(1, place=56, state="T", frames=IN_LOOP)],
        seconds=300.4,
        stacks="pvc://ckpt/a/attempts/2/stacks-node-0.txt",
    )
    assert found == Standstill(
        rank=1,
        stage=Stage.TRAINING,
        step=41,
        place=56,
        waits=False,
        state="T",
        seconds=300,
        frames=["read (me/data.py:12)"],
        stacks="pvc://ckpt/a/attempts/2/stacks-node-0.txt",
    )
    assert found.told() == (
        "rank 1 stood in Training after step 41, stopped by a signal at read (me/data.py:12); "
        "stacks: pvc://ckpt/a/attempts/2/stacks-node-0.txt"
    )


def test_marks_go_on_from_one_another_and_count_what_is_done_alone_apart(tmp_path: Path) -> None:
    assert read_marks(tmp_path) == []
    for rank in (10, 9):
        Marker(tmp_path, rank).mark(Stage.STARTING)
    first = Marker(tmp_path, 9)
    first.mark(Stage.TRAINING, step=400)
    Marker(tmp_path, 9).mark()
    first.mark(alone=True)
    nine, ten = read_marks(tmp_path)
    assert (nine.rank, nine.pid, nine.stage, nine.step) == (9, os.getpid(), Stage.TRAINING, 400)
    assert (nine.place, nine.signs) == (3, 1)
    assert (ten.rank, ten.stage, ten.step, ten.place) == (10, Stage.STARTING, 0, 1)


RANK = """
import os, sys, threading, time
from pathlib import Path
from sft_trainer.marks import Marker
from sft_trainer.stacks import answer_with_stacks
from sftjob.progress import Stage

def sleeps():
    open(there, "wb")
    time.sleep(1e6)

def loops():
    open(there, "wb")
    while True:
        pass

def becomes_another_program():
    os.execvp("sleep", ["sleep", "1000000"])

def joins():
    thread = threading.Thread(target=sleeps, daemon=True)
    thread.start()
    thread.join()

scratch, rank = Path(sys.argv[1]), int(sys.argv[2])
there = scratch / f"there-{rank}"
answer_with_stacks(scratch, rank)
Marker(scratch, rank).mark(Stage.TRAINING, step=4)
globals()[sys.argv[3]]()
"""


def state(pid: int) -> str | None:
    """Of a child of this process."""
    return process_state(pid, parent=os.getpid())


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[list[Mark]]:
    """Five processes: one asleep, one in a loop, one that waits for its thread, one stopped by a signal, one another
    program by now."""
    script = tmp_path / "stand.py"
    script.write_text(RANK)
    ways = ("sleeps", "loops", "joins", "sleeps", "becomes_another_program")
    command = [sys.executable, str(script), str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank), way]) for rank, way in enumerate(ways)]
    try:
        until(lambda: all((tmp_path / f"there-{rank}").exists() for rank in range(4)))
        until(lambda: {state(processes[rank].pid) for rank in (0, 2, 3)} == {"S"})
        processes[3].send_signal(signal.SIGSTOP)
        until(lambda: state(processes[3].pid) == "T")
        until(lambda: "sleep" in Path(f"/proc/{processes[4].pid}/comm").read_text())
        yield read_marks(tmp_path)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_every_rank_gives_its_stack_asleep_in_a_loop_or_stopped(tmp_path: Path, ranks: list[Mark]) -> None:
    found = gather(tmp_path, ranks[:4], parent=os.getpid(), wait_seconds=120)
    assert [one.mark.rank for one in found] == [0, 1, 2, 3]
    assert [one.frames[0].function for one in found[:2]] == ["sleeps", "loops"]
    assert found[3].state == "T"
    assert [frame.function for frame in found[3].frames] == ["sleeps", "<module>"]
    # The main thread only waits, and the other one isn't ours: its own frames are all there is.
    assert found[2].frames[0].waits_for_thread
    assert "in sleeps" in found[2].text
    text = page(found, seconds=300)
    assert [f"\nrank {rank}: Training after step 4, mark 1" in text for rank in range(4)] == [True] * 4
    # It was woken to answer, and nobody was harmed.
    assert all(state(mark.pid) for mark in ranks[:4])


def test_a_rank_that_became_another_program_is_let_live(tmp_path: Path, ranks: list[Mark]) -> None:
    [found] = gather(tmp_path, ranks[4:], parent=os.getpid(), wait_seconds=1)
    assert found.text == ""
    # That it sleeps, or is no more.
    until(lambda: state(ranks[4].pid) in ("S", None))
    assert state(ranks[4].pid) == "S"


def test_a_thread_of_ours_that_the_main_one_waits_for_is_what_stands() -> None:
    waits = [Frame("/usr/lib/python3.11/threading.py", 1119, "join"), *IN_LOOP]
    ours = [IN_COLLECTIVE[0], Frame(f"{Path(told.__code__.co_filename).parent}/train/saver.py", 118, "_write")]
    assert working_thread({1: waits, 2: ours}, main=1) == ours
    assert working_thread({1: waits, 2: IN_LOOP}, main=1) == waits
    assert working_thread({1: IN_LOOP, 2: ours}, main=1) == IN_LOOP


def test_a_process_of_somebody_else_is_no_rank() -> None:
    assert process_state(os.getpid(), parent=os.getppid()) is not None
    assert process_state(os.getpid(), parent=1 if os.getppid() != 1 else 2) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: state(ended.pid) is None)
    ended.wait()
    assert (state(ended.pid), moved_bytes(ended.pid)) == (None, 0)


def test_bytes_count_that_a_process_reads_and_writes(tmp_path: Path) -> None:
    before = moved_bytes(os.getpid())
    (tmp_path / "file").write_bytes(bytes(123456))
    assert moved_bytes(os.getpid()) - before >= 123456
