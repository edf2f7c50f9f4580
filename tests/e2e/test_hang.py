"""A rank that stops in mid-run with nobody to tell of it: `progressDeadlineSeconds` of a real `sft run`."""

import os
import signal

from e2e.local_run import LocalRun, assert_bit_equal


def restart(run: LocalRun, **policy: int) -> None:
    """Another `sft run` with another policy adopts the attempt that runs."""
    assert run.process is not None
    run.process.kill()
    run.process.wait()
    run.manifest["spec"]["runPolicy"] = {"terminationGracePeriodSeconds": 10, **policy}
    run.start()


def test_a_rank_that_stands_still_ends_its_attempt_as_a_hang_and_the_next_one_goes_on(
    run: LocalRun, undisturbed: LocalRun
) -> None:
    run.manifest["spec"]["runPolicy"] = {"terminationGracePeriodSeconds": 10}
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
    assert hang["message"].startswith("spec.runPolicy.progressDeadlineSeconds: nothing new for 10 s in stage ")
    assert last["resumedFrom"] == hang["savedStep"] >= 2
    attempts = run.status()["attempts"]
    assert (attempts["failures"], attempts["disruptions"]) == (1, 0)
    recovery = last["recovery"]
    assert recovery["cleanUpSeconds"] >= 1
    assert {"detectSeconds", "startSeconds", "loadSeconds"} <= recovery.keys()
    assert_bit_equal(run, undisturbed)
