"""Saves beside the steps: they hold what the step left, one at a time, and whoever waits for them waits to the end."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_run import SmallRun
from torch.distributed.device_mesh import init_device_mesh

from sft_trainer.storage import checkpoints
from sft_trainer.train import loop, saver
from sft_trainer.train.evaluation import Evaluation
from sft_trainer.train.stop import Preempted
from sft_trainer.train.world import World
from sftjob.failure import JobFailure, Reason

PATIENCE_SECONDS = 100


@pytest.fixture
def held(monkeypatch):
    """A save of this step is written only when the event is set."""
    free = threading.Event()
    write = saver.write_checkpoint

    def hold(step: int) -> threading.Event:
        def write_later(state, *, manifest, **options):
            if manifest.step == step:
                assert free.wait(PATIENCE_SECONDS)
            return write(state, manifest=manifest, **options)

        monkeypatch.setattr(saver, "write_checkpoint", write_later)
        return free

    return hold


@pytest.fixture
def after_step(monkeypatch):
    """Something that is done once, when a step has ended, before anything is saved."""

    def call(step: int, deed) -> None:
        go_on, done = loop._Run._evaluate_if_due, []

        def do_and_go_on(run) -> bool:
            if run.state.last_step == step and not done:
                done.append(step)
                deed(run)
            return go_on(run)

        monkeypatch.setattr(loop._Run, "_evaluate_if_due", do_and_go_on)

    return call


def test_a_checkpoint_has_the_state_of_its_step_though_later_steps_were_done_meanwhile(
    tmp_path: Path, held, after_step
) -> None:
    plain = SmallRun(tmp_path / "plain")
    plain.go()
    run = plain.another("beside", save_mode="async", interval=2)
    free = held(2)
    seen = []

    def look_and_free(state) -> None:
        seen.append((run.checkpoints(), state.state.saved_step))
        free.set()

    after_step(3, look_and_free)
    state = run.go()
    # Step 3 was trained before step 2 was written.
    assert seen == [([], None)]
    assert run.checkpoints() == [2, 4, 6]
    assert (state.saved_step, state.final_digest) == (6, run.manifest(6).digest())
    for step in (2, 4, 6):
        expected = plain.tensors(step)
        assert run.tensors(step).keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(run.tensors(step)[name], tensor), (step, name)


@pytest.mark.full
def test_a_run_that_ends_between_saves_beside_the_steps_goes_on_bit_equal(tmp_path: Path, after_step) -> None:
    plain = SmallRun(tmp_path / "plain", {"every_steps": 2})
    plain.go()
    run = plain.another("beside", save_mode="async", interval=2)

    def die(_) -> None:
        raise ZeroDivisionError

    after_step(5, die)
    with pytest.raises(ZeroDivisionError):
        run.go()
    # Whether step 4 was published before the end is a matter of time; both are right.
    assert run.go().resumed_from in (2, 4)
    assert run.manifest(6).evaluation == plain.manifest(6).evaluation
    for name, tensor in plain.tensors(6).items():
        assert torch.equal(run.tensors(6)[name], tensor), name


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, held, monkeypatch) -> None:
    run = SmallRun(tmp_path / "run", save_mode="async", interval=2, total_steps=5)
    free = held(2)
    begin, at_begin = saver.CheckpointSaver.begin, []

    def begin_and_note(self, manifest, **options) -> None:
        at_begin.append((manifest.step, run.checkpoints()))
        begin(self, manifest, **options)

    monkeypatch.setattr(saver.CheckpointSaver, "begin", begin_and_note)
    ended = saver.CheckpointSaver.has_ended

    def free_when_waited_for(self, *, wait_seconds):
        if wait_seconds is None:
            free.set()
        return ended(self, wait_seconds=wait_seconds)

    monkeypatch.setattr(saver.CheckpointSaver, "has_ended", free_when_waited_for)
    run.go()
    assert at_begin == [(2, []), (4, [2]), (5, [2, 4])]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_save_that_fails_ends_the_run_with_the_same_words_in_both_modes(
    tmp_path: Path, mode: str, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = SmallRun(tmp_path / "run", save_mode=mode, interval=2, total_steps=50)
    monkeypatch.setattr(checkpoints, "publish", full)
    words = r"spec\.checkpoint\.storage: writing .*step-2\.tmp-a1 failed .*No space left on device.* GB are free there"
    with pytest.raises(JobFailure, match=words) as caught:
        run.go()
    assert caught.value.reason is Reason.STORAGE_FULL
    assert run.checkpoints() == []
    # Not at the end: what can't be saved is not trained for days.
    assert run.state.last_step <= 4


def test_where_memory_is_too_small_for_a_copy_training_stands_for_this_save_and_all_later_ones(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    tried = []

    def too_large(*_: object) -> None:
        tried.append(1)
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(saver.DefaultStager, "stage", too_large)
    run = SmallRun(tmp_path / "run", save_mode="async", interval=2)
    assert run.go().saved_step == 6
    assert run.checkpoints() == [2, 4, 6]
    assert len(tried) == 1
    assert "checkpoints are saved between the steps from here on, as with saveMode: sync" in caplog.text


def test_a_stop_waits_for_the_save_on_its_way_and_saves_what_came_after(tmp_path: Path, held, after_step) -> None:
    run = SmallRun(tmp_path / "run", save_mode="async", interval=2)
    free = held(2)

    def stop(state) -> None:
        state.stop._received_at = time.monotonic()
        threading.Timer(0.3, free.set).start()

    after_step(3, stop)
    with pytest.raises(Preempted, match="everything is saved"):
        run.go()
    assert run.checkpoints() == [2, 3]


def test_a_stop_leaves_a_save_that_outlasts_the_grace_period(tmp_path: Path, held, after_step) -> None:
    run = SmallRun(tmp_path / "run", save_mode="async", interval=2, total_steps=9, grace_seconds=8.2)
    free = held(4)
    after_step(5, lambda state: setattr(state.stop, "_received_at", time.monotonic()))
    with pytest.raises(Preempted, match="steps since the last save are lost") as caught:
        run.go()
    assert not caught.value.saved
    assert (run.checkpoints(), run.state.saved_step) == ([2], 2)
    free.set()


def test_saves_beside_the_steps_keep_the_best_and_the_newest(tmp_path: Path, monkeypatch) -> None:
    left = [3.0, 1.0, 2.0, 2.5, 1.0, 1.5]
    monkeypatch.setattr(Evaluation, "mean_loss", lambda *_, **__: left.pop(0))
    run = SmallRun(tmp_path / "run", {"every_steps": 1}, keep_last=2, save_mode="async")
    run.go()
    assert run.checkpoints() == [2, 5, 6]
    assert (run.manifest(2).evaluation.loss, run.manifest(6).evaluation.best_step) == (1.0, 2)


def test_the_time_that_saves_take_from_training_is_told_with_the_next_step(tmp_path: Path, monkeypatch) -> None:
    run = SmallRun(tmp_path / "run", interval=2, total_steps=5)
    begin = saver.CheckpointSaver.begin

    def begin_late(self, manifest, **options) -> None:
        time.sleep(0.05 * manifest.step)
        begin(self, manifest, **options)

    monkeypatch.setattr(saver.CheckpointSaver, "begin", begin_late)
    run.go()
    first, second, third, fourth, fifth = (line["save_stall_seconds"] for line in run.lines())
    assert (first, second, fourth) == (0, 0, 0)
    assert third >= 0.1
    assert fifth >= 0.2


def test_what_lost_attempts_were_writing_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", total_steps=1)
    lost = ["step-1.tmp-a1", "hf.tmp-a1", "adapter.tmp-a1", "hf.tmp-a1.tmp-a1"]
    kept = ["hf.tmp-a7", "hf", "mine.tmp-a1"]
    for name in (*lost, *kept):
        (run.storage / name).mkdir(parents=True)
        (run.storage / name / "model.safetensors").write_text("torn")
    run.attempts = 1
    run.go()
    assert {path.name for path in run.storage.iterdir()} == {*kept, "step-1", "attempts", "latest"}


@pytest.mark.parametrize("is_link", [True, False])
def test_an_old_checkpoint_that_cannot_be_deleted_is_told_and_training_goes_on(
    tmp_path: Path, is_link: bool, after_step, monkeypatch, caplog
) -> None:
    run = SmallRun(tmp_path / "run", total_steps=4)
    first, elsewhere = run.storage / "step-1", tmp_path / "elsewhere"

    def move(_) -> None:
        first.rename(elsewhere)
        first.symlink_to(elsewhere)

    remove = os.rmdir

    def as_nfs_with_an_open_file(path, **options) -> None:
        if str(path).rpartition("/")[2].startswith("step-1.tmp"):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        remove(path, **options)

    if is_link:
        after_step(2, move)
    else:
        monkeypatch.setattr(os, "rmdir", as_nfs_with_an_open_file)
    run.keep_last = 2
    for left in ("step-1.tmp-a1", "step-1.tmp-a1.tmp-a2", "step-1.tmp-a1.tmp-a2"):
        assert run.go().last_step == 4
        assert run.checkpoints() == [3, 4]
        assert [path.name for path in run.storage.glob("step-1*")] == ([] if is_link else [left])
    if is_link:
        assert (elsewhere / "manifest.json").exists()
    else:
        assert caplog.text.count("step-1 can't be deleted, and takes up room: [Errno 39] Directory not empty") == 1


def test_torchs_own_reader_finds_the_weights_and_moments_of_two_ranks(tmp_path: Path) -> None:
    runs = {
        moments: SmallRun(tmp_path / moments, save_mode="async", interval=3, total_steps=4, moments=moments)
        for moments in ("fp32", "bf16")
    }
    for run in runs.values():
        run.options()
    mp.spawn(_one_of_two_that_tell, args=(list(runs.values()), tmp_path), nprocs=2)
    for moments, run in runs.items():
        expected = torch.load(run.folder / "expected.pt")
        read = {name: tensor for name, tensor in run.tensors(3).items() if not name.startswith("rng.")}
        assert read.keys() == expected.keys()
        assert len(expected) > 60
        for name, tensor in expected.items():
            assert torch.equal(read[name], tensor), name
            dtype = torch.bfloat16 if moments == "bf16" and name.startswith("optimizer.") else torch.float32
            assert read[name].dtype == dtype


def _one_of_two_that_tell(rank: int, runs: list[SmallRun], folder: Path) -> None:
    """Whole tensors after step 3, gathered by FSDP2 itself."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"), mesh=init_device_mesh("cpu", (2,)))
    go_on = loop._Run._evaluate_if_due

    def tell_and_go_on(self) -> bool:
        if self.state.last_step == 3:
            whole = {}
            for name, parameter in self.model.named_parameters():
                whole[f"model.{name}"] = parameter.full_tensor().detach()
                for moment in ("exp_avg", "exp_avg_sq"):
                    whole[f"optimizer.{name}.{moment}"] = self.optimizer.state[parameter][moment].full_tensor()
            if rank == 0:
                torch.save(whole, self.place.fence.storage.parent / "expected.pt")
        return go_on(self)

    loop._Run._evaluate_if_due = tell_and_go_on
    for run in runs:
        run.go(world=world)
    dist.destroy_process_group()
