"""Checkpoints that nobody asked for: by the clock, one at a time, as long as what was asked for has room."""

import errno
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_run import ALONE, SmallRun
from test_resume import die_after
from torch.distributed.device_mesh import init_device_mesh

from sft_trainer.storage import checkpoints
from sft_trainer.train import loop, save_clock, saver
from sft_trainer.train.evaluation import Evaluation
from sft_trainer.train.stop import Preempted
from sft_trainer.train.world import World
from sftjob.failure import JobFailure, Reason
from tests.s3_server import S3Server

NO_FURTHER = "training goes on, and saves at a stop and at the end only"


@pytest.mark.parametrize(
    ("seconds_since", "stall_seconds", "due"),
    [(1799, 0, False), (1800, 0, True), (1800, 90, True), (1800, 91, False), (1820, 91, True)],
)
def test_each_half_hour_or_when_a_twentieth_of_the_time_is_enough(
    seconds_since: float, stall_seconds: float, due: bool
) -> None:
    assert save_clock.is_due(seconds_since=seconds_since, stall_seconds=stall_seconds) is due


def test_the_clock_begins_again_with_each_save(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 7.0
    monkeypatch.setattr(save_clock, "time", SimpleNamespace(monotonic=lambda: now))
    clock = save_clock.SaveClock(ALONE, runs=True)
    now += 1800
    assert clock.is_due()
    clock.begin_again(stall_seconds=100)
    now += 1999
    assert not clock.is_due()
    now += 1
    assert clock.is_due()
    clock.stop()
    assert not clock.is_due()
    assert not save_clock.SaveClock(ALONE, runs=False).is_due()


@pytest.fixture
def due_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """The clock, asked after each step but the last, says yes after these; how long saves took, as it hears."""

    def say(*steps: int) -> list[float]:
        heard: list[float] = []

        def is_due(*, seconds_since: float, stall_seconds: float) -> bool:
            assert seconds_since >= 0
            heard.append(stall_seconds)
            return len(heard) in steps

        monkeypatch.setattr(save_clock, "is_due", is_due)
        return heard

    return say


@pytest.fixture
def at_publish(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The checkpoints that there are each time before another one is published, the newest last."""
    publish, seen = checkpoints.publish, []

    def look_and_publish(temporary: Path, final: Path) -> None:
        seen.append(sorted(path.name for path in final.parent.glob("step-?")))
        publish(temporary, final)

    monkeypatch.setattr(checkpoints, "publish", look_and_publish)
    return seen


def occupied(folder: Path) -> int:
    """In pages, as tmpfs takes them."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.iterdir())


class OnVolume(SmallRun):
    """A run whose volume is for its exported model too."""

    @property
    def exported(self) -> Path:
        return self.storage / "model"


@pytest.fixture
def on_volume(tmp_path: Path) -> Iterator[Callable[..., OnVolume]]:
    """A run whose volume holds one checkpoint and half of another one."""
    mounted: list[Path] = []

    def make(**options: object) -> OnVolume:
        sample = SmallRun(tmp_path / "sample", interval=None, total_steps=1)
        sample.go()
        run = OnVolume(tmp_path / "run", interval=None, **options)
        run.storage.mkdir(parents=True)
        size = f"size={occupied(sample.storage / 'step-1') * 3 // 2}"
        command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(run.storage)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(run.storage)
        return run

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_run_that_is_killed_goes_on_from_one_to_the_same_model(
    tmp_path: Path, due_at, at_publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rising: the first one that the clock saves would be the best.
    found = [1.0, 2.0, 3.0, 3.0, 4.0, 5.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    monkeypatch.setattr(Evaluation, "mean_loss", lambda *_, **__: found.pop(0))
    run = SmallRun(tmp_path / "run", {"every_steps": 1}, interval=None, total_steps=5, keep_last=2, save_mode="async")
    due_at(1, 2)
    with monkeypatch.context() as patch:
        die_after(4, patch)
        with pytest.raises(ZeroDivisionError):
            run.go()
    assert run.checkpoints() == [2]
    assert (run.manifest(2).saved_by_clock, run.manifest(2).saved_by_stop) == (True, None)
    due_at(1)
    assert run.go().resumed_from == 2
    assert run.checkpoints() == [5]
    assert (run.manifest(5).saved_by_clock, run.manifest(5).saved_by_stop) == (None, None)
    # The one before goes when the next one is there.
    assert at_publish == [[], ["step-1"], ["step-2"], ["step-3"]]
    due_at()
    plain = run.another("plain")
    plain.go()
    for name, tensor in plain.tensors(5).items():
        assert torch.equal(run.tensors(5)[name], tensor), name


def test_who_says_how_often_is_taken_at_his_word(tmp_path: Path, due_at) -> None:
    heard = due_at(*range(1, 9))
    run = SmallRun(tmp_path / "run", interval=4)
    run.go()
    assert (run.checkpoints(), heard) == ([4, 6], [])


def test_the_clock_hears_how_long_training_stood_for_the_save_before(
    tmp_path: Path, due_at, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the steps it would not have."""
    write = saver.write_checkpoint

    def write_late(*args: object, **options: object) -> object:
        time.sleep(0.05)
        return write(*args, **options)

    monkeypatch.setattr(saver, "write_checkpoint", write_late)
    heard = due_at(2)
    SmallRun(tmp_path / "run", interval=None, total_steps=4, save_mode="async").go()
    assert heard[:2] == [0, 0]
    assert heard[2] >= 0.05


def test_it_is_none_of_those_to_keep(tmp_path: Path, due_at, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SmallRun(tmp_path / "run", interval=None, keep_last=1)
    due_at()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "agreed_seconds_ago", lambda *_: 0.0 if run.state.last_step == 2 else None)
        with pytest.raises(Preempted):
            run.go()
    due_at(1, 2)
    die_after(5, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        run.go()
    assert run.checkpoints() == [2, 4]


def test_an_attempt_that_ended_before_its_deletion_leaves_it_to_the_next(
    tmp_path: Path, due_at, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path / "run", interval=None, total_steps=3)
    due_at(2)
    retain = checkpoints.retain

    def die_at_the_end(fence: object, **options: int) -> None:
        if run.checkpoints() == [2, 3]:
            raise ZeroDivisionError
        retain(fence, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "retain", die_at_the_end)
        with pytest.raises(ZeroDivisionError):
            run.go()
    assert run.checkpoints() == [2, 3]
    # The pointer, which needs room, comes after.
    assert (run.storage / "latest").read_text() == "step-2"
    assert run.go().resumed_from == 3
    assert run.checkpoints() == [3]


def test_a_volume_for_one_checkpoint_is_enough(on_volume, due_at, at_publish, caplog) -> None:
    caplog.set_level(logging.INFO)
    run = on_volume(total_steps=3)
    due_at(1, 2)
    state = run.go()
    assert (state.saved_step, run.checkpoints()) == (3, [3])
    # Behind that of the sample: each has been given up for the next.
    assert at_publish[1:] == [[], [], []]
    assert (run.exported / "model.safetensors").exists()
    assert caplog.text.count("step-1, which the clock had saved, is deleted") == 1
    assert not list(run.storage.glob("*tmp*"))


def test_one_that_has_no_room_is_left_out_and_training_goes_on(
    on_volume, due_at, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = on_volume(total_steps=4)
    due_at(1, 2, 3)
    ballast, make_room, train_step = run.storage / "others", saver.make_room, loop._Run._train_step
    seen = []

    def make_room_for_others(*arguments: object, **options: bool) -> bool:
        size = occupied(run.storage / "step-1") if (run.storage / "step-1").exists() else 0
        made = make_room(*arguments, **options)
        if size:
            ballast.write_bytes(bytes(size // 4 * 3))
        return made

    def look_and_train(self: loop._Run, step: int) -> None:
        seen.append((run.state.saved_step, sorted(path.name for path in run.storage.glob("step-*"))))
        if step == 4:
            ballast.unlink()
        train_step(self, step)

    monkeypatch.setattr(saver, "make_room", make_room_for_others)
    monkeypatch.setattr(loop._Run, "_train_step", look_and_train)
    assert run.go().saved_step == 4
    # Step 1 was given up in vain, and is not said to be saved; nothing is tried after step 3.
    assert seen == [(None, []), (1, ["step-1"]), (None, []), (None, [])]
    assert run.checkpoints() == [4]
    assert caplog.text.count("step-2.tmp-a1 failed (") == 1
    assert caplog.text.count(NO_FURTHER) == 1
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize(("has_time", "is_known"), [(True, True), (False, True), (True, False)])
def test_a_stop_takes_its_room_if_there_is_known_to_be_time_to_save_again(
    has_time: bool, is_known: bool, on_volume, due_at, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = on_volume(grace_seconds=100)
    due_at(2)
    asked = iter([0.0, 0.0 if has_time else 93.0])

    def stopped_at_3(*_: object) -> float | None:
        if run.state.last_step < 3:
            return None
        if not is_known:
            # As in an attempt that went on from this checkpoint, and has saved none itself.
            run.state.save_seconds = 0.0
        return next(asked)

    monkeypatch.setattr(loop, "agreed_seconds_ago", stopped_at_3)
    if has_time and is_known:
        with pytest.raises(Preempted, match="everything is saved"):
            run.go()
        assert run.checkpoints() == [3]
        assert run.manifest(3).saved_by_stop
    else:
        with pytest.raises(JobFailure) as full:
            run.go()
        assert full.value.reason is Reason.STORAGE_FULL
        assert (run.checkpoints(), run.state.saved_step) == ([2], 2)
    assert not list(run.storage.glob("*tmp*"))


def test_what_was_published_before_room_ran_out_is_saved(
    tmp_path: Path, due_at, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path / "run", interval=None, total_steps=4)
    run.storage.mkdir(parents=True)
    pointer = run.storage / f".latest.{os.getpid()}"
    pointer.symlink_to("/dev/full")
    due_at(2)
    train_step = loop._Run._train_step

    def look_and_train(self: loop._Run, step: int) -> None:
        if step == 4:
            assert (run.checkpoints(), run.state.saved_step) == ([2], 2)
            pointer.unlink(missing_ok=True)
        train_step(self, step)

    monkeypatch.setattr(loop._Run, "_train_step", look_and_train)
    assert run.go().saved_step == 4
    assert NO_FURTHER in caplog.text


def test_any_other_failure_ends_the_run_as_it_does_where_saves_were_asked_for(
    tmp_path: Path, due_at, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    due_at(1)
    monkeypatch.setattr(checkpoints, "publish", broken)
    run = SmallRun(tmp_path / "run", interval=None)
    with pytest.raises(JobFailure, match="Input/output error"):
        run.go()
    assert run.state.last_step == 1


@pytest.mark.usefixtures("s3_credentials")
def test_two_nodes_go_by_the_first_ones_clock_and_leave_no_upload_that_lacked_room(
    tmp_path: Path, s3: S3Server, capfd
) -> None:
    first = SmallRun(tmp_path / "node-0", interval=None, uri="s3://bucket/tuned.checkpoints", total_steps=4)
    runs = [first, first.another("node-1")]
    for run in runs:
        run.options()
    mp.spawn(_one_of_two, args=(runs, tmp_path), nprocs=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["[] 4", "[] 4"]
    uploaded = [one.key.rpartition("checkpoints/")[2] for one in s3.asked("PUT", "distcp")]
    assert uploaded == ["step-2/__0_0.distcp", *uploaded[1:]]
    assert sorted(uploaded[1:]) == ["step-4/__0_0.distcp", "step-4/__1_0.distcp"]
    assert {key.split("/")[1] for key in s3.listed("tuned.checkpoints") if "/step-" in key} == {"step-4"}
    assert capfd.readouterr().err.count(NO_FURTHER) == 1


def _one_of_two(rank: int, runs: list[SmallRun], folder: Path) -> None:
    """The first one's clock is due after step 2, for which the second's disk has no room; the second's after step 1."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"), mesh=init_device_mesh("cpu", (2,)))
    os.environ["LOCAL_RANK"] = "0"
    run, asked, saved = runs[rank], [], []
    save_clock.is_due = lambda **_: asked.append(1) or (rank == 0 and len(asked) == 2) or rank == 1
    stop = save_clock.SaveClock.stop
    save_clock.SaveClock.stop = lambda clock: saved.append([*run.storage.glob("step-*")]) or stop(clock)
    if rank == 1:
        lacking = run.storage / "step-2.tmp-a1"
        lacking.mkdir(parents=True)
        (lacking / "__1_0.distcp").symlink_to("/dev/full")
    state = run.go(world=world)
    (folder / f"{rank}.txt").write_text(f"{saved[0]} {state.saved_step}")
    dist.destroy_process_group()
