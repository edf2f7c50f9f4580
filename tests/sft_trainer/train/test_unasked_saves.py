"""Checkpoints of a run that was not told how often to save: by time, as long as they fit."""

import errno
from pathlib import Path

import pytest
import torch
from small_run import SmallRun
from test_resume import die_after

from sft_trainer.storage import checkpoints
from sft_trainer.train import unasked_save
from sftjob.failure import JobFailure


@pytest.mark.parametrize(
    ("seconds_since", "save_seconds", "due"),
    [(1799, 0, False), (1800, 0, True), (1800, 90, True), (1800, 91, False), (1820, 91, True)],
)
def test_each_half_hour_or_when_a_twentieth_of_the_time_is_enough(
    seconds_since: float, save_seconds: float, due: bool
) -> None:
    assert unasked_save.is_due(seconds_since=seconds_since, save_seconds=save_seconds) is due


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unasked_save, "is_due", lambda **_: True)


@pytest.mark.usefixtures("always_due")
def test_a_run_that_is_killed_goes_on_from_one_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path / "run", interval=None, total_steps=5)
    die_after(3, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        run.go()
    monkeypatch.undo()
    assert run.go().resumed_from == 2
    assert run.manifest(2).saved_by_stop
    assert run.manifest(5).saved_by_stop is None
    plain = run.another("plain")
    assert plain.go().resumed_from is None
    assert plain.checkpoints() == [5]
    for name, tensor in plain.tensors(5).items():
        assert torch.equal(run.tensors(5)[name], tensor), name


@pytest.mark.usefixtures("always_due")
def test_who_says_how_often_is_taken_at_his_word(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", interval=4, total_steps=6)
    run.go()
    assert run.checkpoints() == [4, 6]


@pytest.mark.usefixtures("always_due")
def test_one_that_the_volume_has_no_room_for_is_left_out_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish, tried = checkpoints.publish, []

    def publish_where_there_is_room(temporary: Path, final: Path) -> None:
        tried.append(final.name)
        if final.name != "step-4":
            raise OSError(errno.ENOSPC, "No space left on device")
        publish(temporary, final)

    monkeypatch.setattr(checkpoints, "publish", publish_where_there_is_room)
    run = SmallRun(tmp_path / "run", interval=None, total_steps=4)
    assert run.go().saved_step == 4
    assert tried == ["step-1", "step-4"]
    assert run.checkpoints() == [4]
    assert not list(run.storage.glob("*tmp*"))
    assert "No space left on device" in caplog.text
    assert "training goes on, and saves at a stop and at the end only" in caplog.text


@pytest.mark.usefixtures("always_due")
def test_any_other_failure_ends_the_run_as_it_does_where_saves_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoints, "publish", broken)
    run = SmallRun(tmp_path / "run", interval=None)
    with pytest.raises(JobFailure, match="Input/output error"):
        run.go()
