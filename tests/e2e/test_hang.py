"""A rank that stops in mid-run with nobody to tell of it: a real `sft run`, with a user's deadline and without."""

import json
import os
import signal
from typing import Any

import pytest
from e2e.local_run import FAULTS, LocalRun, assert_bit_equal


def restart(run: LocalRun, **policy: int) -> None:
    """Another `sft run` with another policy adopts the attempt that runs."""
    assert run.process is not None
    run.process.kill()
    run.process.wait()
    run.manifest["spec"]["runPolicy"] = {"terminationGracePeriodSeconds": 20, **policy}
    run.start()


def test_a_rank_that_stands_still_ends_its_attempt_as_a_hang_and_the_next_one_goes_on(
    run: LocalRun, undisturbed: LocalRun
) -> None:
    run.manifest["spec"]["runPolicy"] = {"terminationGracePeriodSeconds": 20}
    run.start()
    run.until_step(3)
    os.kill(run.rank(1), signal.SIGSTOP)
    # The limit holds while the rank stands still only: on a slow machine any honest stage takes longer than that.
    restart(run, progressDeadlineSeconds=10)
    run.until(lambda: run.status()["attempts"].get("ending") or run.status()["attempts"]["history"])
    restart(run)
    run.succeed()
    last, hang = run.status()["attempts"]["history"]
    assert (hang["reason"], last["reason"]) == ("Hang", "Succeeded")
    assert hang["message"].startswith("spec.runPolicy.progressDeadlineSeconds: no progress for 10 s in stage ")
    # It is woken for its stack, so the others may be told to save; who it was is known.
    standstill = hang["standstill"]
    assert (hang["rank"], standstill["rank"], standstill["state"]) == (1, 1, "T")
    assert "; rank 1 stood in Training after step " in hang["message"]
    assert_stacks(run, hang, ranks=[0, 1])
    assert last["resumedFrom"] == hang["savedStep"] >= 2
    attempts = run.status()["attempts"]
    assert (attempts["failures"], attempts["disruptions"]) == (1, 0)
    recovery = last["recovery"]
    assert recovery["cleanUpSeconds"] >= 1
    assert {"detectSeconds", "startSeconds", "loadSeconds"} <= recovery.keys()
    assert_bit_equal(run, undisturbed)


STAYS = {
    "in its data": {"module": "sft_trainer.datasets.batch", "function": "BatchStream.micro_batches", "after": 4},
    "in a save": {"module": "sft_trainer.train.saver", "function": "write_checkpoint", "after": 1},
}


@pytest.mark.parametrize("where", ["in its data", pytest.param("in a save", marks=pytest.mark.full)])
def test_a_rank_that_never_comes_back_is_found_without_any_deadline_and_told_with_its_frames(
    run: LocalRun, undisturbed: LocalRun, where: str
) -> None:
    stay = STAYS[where] | {"rank": 1, "mark": str(run.folder / "stuck"), "limit": 8}
    run.environment = {"PYTHONPATH": FAULTS, "SFTJOB_TEST_STAY": json.dumps(stay)}
    run.start().succeed()
    last, hang = run.status()["attempts"]["history"]
    assert (hang["reason"], hang["rank"], hang["exitCode"], last["reason"]) == ("Hang", 1, 70, "Succeeded")
    standstill = hang["standstill"]
    assert standstill["stage"] == {"in its data": "Training", "in a save": "Saving"}[where]
    assert standstill["step"] == 4
    inner, outer = {"in its data": ("_train_step", "loop.py"), "in a save": ("_write", "saver.py")}[where]
    # Of an attempt that is not the newest any more, frames stand in the message alone.
    assert "at stays_for_ever (faults/sitecustomize.py:" in hang["message"]
    assert f"< {inner} (train/{outer}:" in hang["message"]
    assert f"rank 1 stood in {standstill['stage']} after step 4 at stays_for_ever (" in hang["message"]
    assert "set spec.runPolicy.progressDeadlineSeconds" in hang["message"]
    assert_stacks(run, hang, ranks=[0, 1])
    assert last["resumedFrom"] == hang["savedStep"]
    assert_bit_equal(run, undisturbed)


def assert_stacks(run: LocalRun, record: dict[str, Any], *, ranks: list[int]) -> None:
    """Every rank of the node is in the file that the record names, each with its threads."""
    uri = record["standstill"]["stacks"]
    assert uri == f"pvc://results/model.checkpoints/attempts/{record['number']}/stacks-node-0.txt"
    assert uri in record["message"]
    text = (run.folder / uri.removeprefix("pvc://results/")).read_text()
    parts = text.split("\nrank ")[1:]
    assert [int(part.split(":")[0]) for part in parts] == ranks
    assert all("hread 0x" in part and "/train/loop.py" in part for part in parts)
