"""Curves in trackers: what their own readers find there after a run that was killed and went on."""

import json
import logging
import socket
import sqlite3
import struct
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_trainer.run import RunState
from sft_trainer.tracking import trackers
from sft_trainer.tracking.run import ToldSteps, TrackedRun
from sft_trainer.tracking.tensorboard import TensorBoard
from sft_trainer.tracking.trackers import Trackers
from sft_trainer.tracking.usable import refuse_unusable_trackers
from sft_trainer.train import loop
from sft_trainer.train.metrics import last_steps_before
from sftjob.failure import JobFailure, Reason
from tests.sft_trainer.train.small_run import SmallRun


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, all is there when a run has ended, and of the next attempt one at a time works."""
    monkeypatch.setattr(trackers, "_END_SECONDS", 1000.0)
    monkeypatch.setattr(trackers, "_STOP_SECONDS", 1000.0)


def killed_and_resumed(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> RunState:
    """Steps 1 to 4, of which 3 is saved; then 4 to 6."""
    update, updates = loop.update, []

    def dies(*arguments: object, **named: object) -> None:
        updates.append(1)
        if len(updates) == 5:
            raise KeyboardInterrupt
        update(*arguments, **named)

    monkeypatch.setattr(loop, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        run.go()
    return run.go()


def small(folder: Path, *report_to: str) -> SmallRun:
    return SmallRun(folder / "run", {"every_steps": 3}, interval=3, report_to=report_to)


@pytest.mark.usefixtures("patience")
def test_a_resumed_run_is_one_curve_in_tensorboard_with_each_step_once(tmp_path: Path, monkeypatch) -> None:
    run = small(tmp_path, "tensorboard")
    # An attempt that is superseded and writes on: it does not show either.
    run.storage.mkdir(parents=True)
    late = TensorBoard(
        TrackedRun("id", "name", run.storage, attempt=0, resumed_from=0, told_before=ToldSteps(), config={}),
    )
    killed_and_resumed(run, monkeypatch)
    assert [line["step"] for line in run.lines(attempt=1) if "loss" in line] == [1, 2, 3, 4]
    late.log(5, {"train/loss": 99.0})
    late.close()
    assert sorted(file.suffix for file in (run.storage / "tensorboard").iterdir()) == [".a0", ".a1", ".a2"]

    curves = EventAccumulator(str(run.storage / "tensorboard")).Reload()
    lines = {line["step"]: line for line in [*run.lines(attempt=1), *run.lines()] if "loss" in line}
    for name in ("loss", "lr", "grad_norm", "tokens_per_second", "tflops", "data_seconds", "memory_bytes", "epoch"):
        drawn = [(point.step, point.value) for point in curves.Scalars(f"train/{name}")]
        assert drawn == [(step, pytest.approx(lines[step][name])) for step in range(1, 7)], name
    losses = run.evaluations(attempt=1) | run.evaluations()
    drawn = [(point.step, point.value) for point in curves.Scalars("eval/loss")]
    assert drawn == [(3, pytest.approx(losses[3])), (6, pytest.approx(losses[6]))]
    assert abs(curves.Scalars("train/loss")[0].wall_time - time.time()) < 3600


def test_a_clock_that_is_behind_loses_no_part_of_the_curve(tmp_path: Path, monkeypatch) -> None:
    clock = 1_800_000_000.0
    monkeypatch.setattr(time, "time", lambda: clock)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.notes").touch()
    # The tenth begins within the ninth's second, and its number sorts before.
    for attempt, resumed_from in ((8, 0), (9, 2), (10, 3)):
        written = TensorBoard(
            TrackedRun("id", "name", tmp_path, attempt, resumed_from, told_before=ToldSteps(), config={})
        )
        for step in range(resumed_from + 1, 5):
            written.log(step, {"train/loss": float(attempt)})
        written.close()
        clock = 1_800_000_000.0 - 3600
    drawn = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(point.step, point.value) for point in drawn] == [(1, 8.0), (2, 8.0), (3, 9.0), (4, 10.0)]


@pytest.mark.usefixtures("patience")
def test_a_tracker_that_fails_is_told_once_and_training_goes_on(tmp_path: Path, caplog) -> None:
    run = small(tmp_path, "tensorboard")
    run.storage.mkdir(parents=True)
    (run.storage / "tensorboard").write_text("in the way")
    assert run.go().last_step == 6
    [said] = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert said.startswith("reportTo: tensorboard failed, and training goes on without it: FileExistsError(")


def test_a_tracker_that_is_not_installed_or_has_no_key_is_refused_by_field_and_package(tmp_path, monkeypatch) -> None:
    for name in ("wandb", "trackio", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(JobFailure) as refused:
        refuse_unusable_trackers(["tensorboard", "wandb", "trackio", "wandb"], field="spec.training.reportTo")
    assert refused.value.reason is Reason.INVALID_CONFIGURATION
    assert refused.value.message.splitlines() == [
        "spec.training.reportTo: tensorboard needs the Python package tensorboardX, which is not installed here; use "
        "an image that has it (pip install tensorboardX), or remove tensorboard",
        "spec.training.reportTo: wandb needs the Python package wandb, which is not installed here; use an image that "
        "has it (pip install wandb), or remove wandb",
        "spec.training.reportTo: trackio needs the Python package trackio, which is not installed here; use an image "
        "that has it (pip install trackio), or remove trackio",
        "spec.training.reportTo: wandb has no key; set WANDB_API_KEY, in a job from a Secret by spec.compute.env, or "
        "log in (wandb login), or set WANDB_MODE to offline",
    ]
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123")
    with pytest.raises(JobFailure) as refused:
        refuse_unusable_trackers(["wandb"], field="spec.training.reportTo")
    assert "key" not in refused.value.message
    refuse_unusable_trackers([], field="spec.training.reportTo")


def test_what_earlier_attempts_have_told_ends_with_their_last_whole_line(tmp_path: Path) -> None:
    assert last_steps_before(tmp_path, 3) == ToldSteps(0, 0)
    for attempt, text in (
        (1, '{"step": 5, "eval_loss": 1.0}\n{"step": 7}\n{"step": 8}\n{"step": 9, "lo'),
        (2, '{"step": 6}\n'),
        (3, '{"step": 20}\n'),
    ):
        folder = tmp_path / "attempts" / str(attempt)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(text)
    assert last_steps_before(tmp_path, 3) == ToldSteps(8, 5)


class _Kept:
    told: ClassVar[list[tuple[int, dict[str, float]]]] = []

    def __init__(self, run: TrackedRun) -> None:
        pass

    def log(self, step: int, values: dict[str, float]) -> None:
        self.told.append((step, values))

    def close(self) -> None:
        pass


def test_an_evaluation_in_which_an_attempt_was_stopped_is_told_by_the_next_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(trackers._CLASSES, "wandb", (__name__, "_Kept"))
    monkeypatch.setattr(_Kept, "told", [])
    run = TrackedRun("id", "name", tmp_path, attempt=2, resumed_from=10, told_before=ToldSteps(10, 5), config={})
    tracked = Trackers(["wandb"], run)
    for step, values in ((5, {"eval/loss": 3.0}), (10, {"train/loss": 2.0}), (10, {"eval/loss": 2.0})):
        tracked.log(step, values)
    tracked.log(11, {"train/loss": 1.0})
    tracked.close(at_the_end=True)
    assert _Kept.told == [(10, {"eval/loss": 2.0}), (11, {"train/loss": 1.0})]


@pytest.mark.usefixtures("patience")
def test_trackio_has_one_run_with_each_step_once(tmp_path: Path, monkeypatch) -> None:
    database = tmp_path / "run" / "storage" / "trackio"
    # The library reads it once, when it is imported.
    monkeypatch.setenv("TRACKIO_DIR", str(database))
    pytest.importorskip("trackio")
    run = small(tmp_path, "trackio")
    killed_and_resumed(run, monkeypatch)
    [file] = database.glob("sftjob*.db")
    found = sqlite3.connect(file).execute("select run_name, step, metrics from metrics order by step, id").fetchall()
    rows = [(name, step, json.loads(told)) for name, step, told in found]
    losses = [(step, told["train/loss"]) for _, step, told in rows if "train/loss" in told]
    lines = {line["step"]: line for line in [*run.lines(attempt=1), *run.lines()] if "loss" in line}
    assert losses == [(step, lines[step]["loss"]) for step in range(1, 7)]
    assert {name for name, _, _ in rows} == {"small-01234567"}
    assert [step for _, step, told in rows if "eval/loss" in told] == [3, 6]


def wandb_records(file: Path) -> list[bytes]:
    """LevelDB's log format behind a header of seven bytes: blocks of 32 KiB, in them pieces of records."""
    content, records, at, begun = file.read_bytes(), [], 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        begun += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            records.append(begun)
            begun = b""
    return records


@pytest.mark.usefixtures("patience")
def test_wandb_keeps_both_attempts_under_the_runs_own_id(tmp_path: Path, monkeypatch) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = small(tmp_path, "wandb")
    killed_and_resumed(run, monkeypatch)
    # Its service has written everything by then, and the next test begins with settings of its own.
    wandb.teardown()
    for attempt, steps, evaluated in ((1, [1, 2, 3, 4], [3]), (2, [5, 6], [6])):
        [file] = run.storage.glob(f"attempts/{attempt}/wandb/offline-run-*/run-0123456789abcdef.wandb")
        told, evaluations = {}, []
        for record in map(Record.FromString, wandb_records(file)):
            values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "train/loss" in values:
                told[json.loads(values["_step"])] = json.loads(values["train/loss"])
            if "eval/loss" in values:
                evaluations.append(json.loads(values["eval/step"]))
        lines = {line["step"]: line["loss"] for line in run.lines(attempt=attempt) if "loss" in line}
        assert evaluations == evaluated
        assert list(told) == steps
        assert told == pytest.approx({step: lines[step] for step in steps})


def test_a_server_that_never_answers_holds_up_neither_a_step_nor_the_end(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        run = TrackedRun("id", "name", tmp_path, attempt=1, resumed_from=0, told_before=ToldSteps(), config={})
        run.folder.mkdir(parents=True)
        hanging = Trackers(["wandb"], run)
        for step in range(1, 1001):
            hanging.log(step, {"train/loss": 1.0})
        hanging.close(at_the_end=False)
        assert "tracker-wandb" in [thread.name for thread in threading.enumerate()], "it still waits"
