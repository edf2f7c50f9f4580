"""Launchers started by hand: two of one attempt, one that wakes up late, one that is told to stop."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from e2e.local_run import FAULTS, PATIENCE_SECONDS, LocalRun, assert_bit_equal, fingerprint

from sft_operator.lifecycle.plan import launch_plan
from sft_trainer.progress import read_progress
from sftjob.job import SFTJob
from sftjob.outcome import Outcome


class Launcher:
    """One launcher process of a run's job, with a scratch folder of its own."""

    def __init__(self, run: LocalRun, *, attempt: int, scratch: Path, uid: str = "uid-1", **environment: str) -> None:
        scratch.mkdir(parents=True)
        self.scratch = scratch
        job = SFTJob.model_validate(
            run.manifest | {"metadata": {"name": "small", "namespace": "default", "uid": uid}}, extra="ignore"
        )
        plan = launch_plan(
            job,
            attempt,
            path_of=lambda uri: uri.removeprefix("file://").replace("pvc://results", str(run.folder)),
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sft_trainer.launcher", "--plan", plan.to_json()],
            env=os.environ
            | environment
            | {
                "SFTJOB_NODE_RANK": "0",
                "SFTJOB_MASTER_ADDRESS": "127.0.0.1",
                "SFTJOB_MASTER_PORT": "0",
                "SFTJOB_SCRATCH": str(scratch),
                "SFTJOB_TERMINATION_MESSAGE": str(scratch / "outcome.json"),
                "SFTJOB_SERVE_ADDRESS": "127.0.0.1:0",
                "SFTJOB_POD_UID": f"pod-{attempt}",
            },
            start_new_session=True,
            stdout=(scratch / "launcher.log").open("wb"),
            stderr=subprocess.STDOUT,
        )

    def outcome(self) -> Outcome:
        code = self.process.wait(timeout=PATIENCE_SECONDS)
        outcome = Outcome.from_json((self.scratch / "outcome.json").read_text())
        assert outcome.exit_code == code
        return outcome


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        return str(answer.read().decode())


@pytest.fixture
def launched(run: LocalRun) -> LocalRun:
    """The job of `run`, whose launchers the test starts itself."""
    run.folder.mkdir(exist_ok=True)
    return run


@pytest.mark.parametrize("moment", [pytest.param("between steps", marks=pytest.mark.full), "inside a save"])
def test_a_second_launcher_of_an_attempt_and_an_older_one_leave_and_change_nothing(
    launched: LocalRun, undisturbed: LocalRun, moment: str
) -> None:
    mark = launched.folder / "stopped"
    fault = {"event": "open", "pattern": r"step-4\.tmp-a2/__0_0\.distcp r", "after": 0, "mark": str(mark)}
    inside_a_save = {
        "PYTHONPATH": FAULTS,
        "SFTJOB_TEST_FAULT": json.dumps(fault | {"signal": "SIGSTOP"}),
    }
    environment = inside_a_save if moment == "inside a save" else {}
    first = Launcher(launched, attempt=2, scratch=launched.folder / "s2", **environment)
    launched.until_step(2, attempt=2)
    if environment:
        launched.until(mark.exists)
    os.killpg(first.process.pid, signal.SIGSTOP)
    for pid in launched.processes("sft_trainer"):
        os.kill(pid, signal.SIGSTOP)
    before = fingerprint(launched.storage)
    for name, attempt in (("same", 2), ("older", 1)):
        late = Launcher(launched, attempt=attempt, scratch=launched.folder / name).outcome()
        assert (late.reason, late.exit_code) == ("Superseded", 76)
    foreign = Launcher(launched, attempt=3, scratch=launched.folder / "foreign", uid="uid-2").outcome()
    assert (foreign.reason, foreign.exit_code) == ("StorageRefused", 73)
    assert "belongs to the job default/small with uid uid-1" in foreign.message
    assert "name another folder, or delete" in foreign.message
    assert fingerprint(launched.storage) == before

    # Attempt 3 trains to the end while attempt 2 sleeps; then attempt 2 wakes up.
    last = Launcher(launched, attempt=3, scratch=launched.folder / "s3").outcome()
    assert last.reason == "Succeeded"
    whole = fingerprint(launched.storage) | fingerprint(launched.folder / "model")
    for pid in launched.processes("sft_trainer"):
        os.kill(pid, signal.SIGCONT)
    os.killpg(first.process.pid, signal.SIGCONT)
    assert first.outcome().reason == "Superseded"
    after = fingerprint(launched.storage) | fingerprint(launched.folder / "model")
    own = {name for name in after if name.startswith("attempts/2/") or name.endswith(".a2")}
    leftovers = {name for name in after if ".tmp-a2/" in name}
    assert {n: d for n, d in after.items() if n not in own | leftovers} == {
        n: d for n, d in whole.items() if n not in own
    }
    assert_bit_equal(launched, undisturbed)


def test_a_stopped_attempt_saves_its_last_finished_step_and_the_next_goes_on(
    launched: LocalRun, undisturbed: LocalRun
) -> None:
    first = Launcher(launched, attempt=1, scratch=launched.folder / "s1")
    launched.until_step(3)
    address = (first.scratch / "address").read_text()
    progress = json.loads(fetched(f"http://{address}/progress"))
    assert (progress["attempt"], progress["podUid"], progress["totalSteps"]) == (1, "pod-1", 12)
    assert "sftjob_total_steps 12.0" in fetched(f"http://{address}/metrics")
    first.process.send_signal(signal.SIGTERM)
    stopped = first.outcome()
    assert (stopped.reason, stopped.exit_code, stopped.saved) == ("Preempted", 75, True)
    assert stopped.saved_step == stopped.last_step >= 3

    unpublished = launched.folder / "model.tmp-a1"
    unpublished.mkdir()
    (unpublished / "model.safetensors").write_bytes(b"half")
    second = Launcher(launched, attempt=2, scratch=launched.folder / "s2").outcome()
    assert (second.reason, second.resumed_from) == ("Succeeded", stopped.saved_step)
    assert second.final_digest is not None
    assert not unpublished.exists()
    assert_bit_equal(launched, undisturbed)

    # All is trained and published: one more attempt only says so.
    began = time.monotonic()
    third = Launcher(launched, attempt=3, scratch=launched.folder / "s3").outcome()
    print(f"an attempt with nothing to do took {time.monotonic() - began:.1f} s")
    assert (third.reason, third.final_digest) == ("Succeeded", second.final_digest)
    assert third.artifacts == second.artifacts
    assert not (launched.folder / "s3" / "reports").exists()


@pytest.mark.parametrize(
    "seconds", [None, *(pytest.param(seconds, marks=pytest.mark.full) for seconds in (0.0, 0.3, 2.0, 10.0))]
)
def test_a_signal_to_one_rank_saves_on_all_and_comes_to_the_others_too_late(
    launched: LocalRun, undisturbed: LocalRun, seconds: float | None
) -> None:
    """`seconds` later the other rank gets it too, if it is still there."""
    launched.manifest["spec"]["checkpoint"]["saveMode"] = "async"
    first = Launcher(launched, attempt=1, scratch=launched.folder / "s1")
    launched.until_step(3)
    other = launched.rank(0)
    os.kill(launched.rank(1), signal.SIGTERM)
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(other, signal.SIGTERM)
    stopped = first.outcome()
    assert (stopped.reason, stopped.exit_code, stopped.saved) == ("Preempted", 75, True)
    assert stopped.saved_step == stopped.last_step >= 3
    second = Launcher(launched, attempt=2, scratch=launched.folder / "s2").outcome()
    assert (second.reason, second.resumed_from) == ("Succeeded", stopped.saved_step)
    assert_bit_equal(launched, undisturbed)
    # For an operator that saw nothing of the first one.
    told = read_progress(launched.folder / "s2").end_before
    assert (told.attempt, told.reason, told.node_rank, told.ended_at) == (1, "Preempted", 0, stopped.ended_at)


@pytest.mark.parametrize(
    ("dead", "mode"),
    [
        ("SIGSTOP", "async"),
        pytest.param("SIGSTOP", "sync", marks=pytest.mark.full),
        pytest.param("SIGKILL", "sync", marks=pytest.mark.full),
        pytest.param("SIGKILL", "async", marks=pytest.mark.full),
    ],
)
def test_a_stop_with_a_dead_rank_ends_within_the_grace_period_and_leaves_the_last_checkpoint(
    launched: LocalRun, dead: str, mode: str, pytestconfig: pytest.Config
) -> None:
    """The dead rank stands still in its part of the save of step 4; with SIGKILL it dies once all are told to stop."""
    grace_seconds = 16
    launched.manifest["spec"]["runPolicy"]["terminationGracePeriodSeconds"] = grace_seconds
    launched.manifest["spec"]["checkpoint"]["saveMode"] = mode
    mark = launched.folder / "stands-still"
    # The launcher wakes a stopped rank for its stack; this one is not to go on then and save after all.
    fault = {
        "event": "open",
        "pattern": r"step-4\.tmp-a1/__1_0\.distcp",
        "after": 0,
        "mark": str(mark),
        "signal": "SIGSTOP",
        "for_ever": True,
    }
    first = Launcher(
        launched,
        attempt=1,
        scratch=launched.folder / "s1",
        PYTHONPATH=FAULTS,
        SFTJOB_TEST_FAULT=json.dumps(fault),
    )
    launched.until(mark.exists)
    whole = fingerprint(launched.storage / "step-2")
    victim = launched.rank(1)
    asked_at, began = datetime.now(UTC), time.monotonic()
    first.process.send_signal(signal.SIGTERM)
    if dead == "SIGKILL":
        os.kill(victim, signal.SIGKILL)
    stopped = first.outcome()
    seconds = time.monotonic() - began
    print(f"a stop with a dead rank took {seconds:.1f} of {grace_seconds} s")
    assert (stopped.ended_at - asked_at).total_seconds() < grace_seconds
    # A busy machine takes long for the end of a process.
    assert seconds < grace_seconds or not pytestconfig.getoption("--full")
    assert (stopped.reason, stopped.exit_code, stopped.saved) == ("Preempted", 75, False)
    assert stopped.saved_step == 2
    assert not launched.processes("sft-rank")
    assert fingerprint(launched.storage / "step-2") == whole
    assert (launched.storage / "latest").read_text() == "step-2"


def test_one_rank_and_two_ranks_train_the_same(undisturbed: LocalRun, run: LocalRun) -> None:
    run.manifest["spec"]["compute"]["processesPerNode"] = 1
    run.start().succeed()
    one, two = run.metrics(), undisturbed.metrics()
    assert [line["samples"] for line in one.values()] == [line["samples"] for line in two.values()]
    for step in one:
        assert one[step]["loss"] == pytest.approx(two[step]["loss"], rel=1e-5)
    assert json.loads((run.storage / "step-12" / "manifest.json").read_text())["worldSize"] == 1
