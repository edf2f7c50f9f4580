"""SIGKILL of a rank, of torchrun, of the launcher, at random and at chosen moments: the run ends as if nothing was."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.local_run import EVERY_STEPS, FAULTS, TOTAL_STEPS, LocalRun, assert_bit_equal, kill

SMALLEST = [0]
"""Seeds of jobs in which a rank is killed twice."""
FULL = range(1, 10)


@pytest.mark.parametrize("seed", [*SMALLEST, *(pytest.param(seed, marks=pytest.mark.full) for seed in FULL)])
def test_a_job_whose_ranks_are_killed_at_random_ends_bit_equal_to_an_undisturbed_one(
    run: LocalRun, undisturbed: LocalRun, seed: int
) -> None:
    dice = random.Random(seed)
    run.start()
    victims = []
    for attempt, earliest in ((1, 1), (2, TOTAL_STEPS // 2)):
        rank = dice.randrange(2)
        run.until_step(dice.randrange(earliest, earliest + TOTAL_STEPS // 2), attempt=attempt)
        time.sleep(dice.random() * 0.3)
        kill(run.rank(rank))
        victims.append(rank)
        run.until(lambda attempt=attempt: run.status()["attempts"]["current"] == attempt + 1)
    run.succeed()

    records = list(reversed(run.status()["attempts"]["history"]))
    assert [(record["reason"], record.get("rank"), record.get("signal")) for record in records] == [
        *(("RankKilled", rank, signal.SIGKILL) for rank in victims),
        ("Succeeded", None, None),
    ]
    for before, after in itertools.pairwise(records):
        assert after.get("resumedFrom") == before.get("savedStep")
        assert (after.get("resumedFrom") or 0) % EVERY_STEPS == 0
        assert before["lastStep"] - (after.get("resumedFrom") or 0) <= EVERY_STEPS
    assert_bit_equal(run, undisturbed)


@pytest.mark.full
def test_a_job_in_which_a_rank_is_killed_after_each_step_in_turn_ends_bit_equal(
    run: LocalRun, undisturbed: LocalRun
) -> None:
    """Each attempt reaches one step more than the one before it, the last one the end of training."""
    run.start()
    for step in range(1, TOTAL_STEPS + 1):
        run.until_step(step, attempt=step)
        kill(run.rank(step % 2))
        run.until(lambda attempt=step + 1: run.status()["attempts"]["current"] == attempt)
    run.succeed()
    assert run.status()["attempts"]["failures"] == TOTAL_STEPS
    assert_bit_equal(run, undisturbed)


@pytest.mark.full
def test_an_attempt_compiles_nothing_that_the_one_before_it_has_compiled(run: LocalRun) -> None:
    run.manifest["spec"]["training"]["fsdp"] = {"torchCompile": True}
    run.start()
    run.until_step(3)
    kill(run.rank(1))
    run.until(lambda: run.status()["attempts"]["current"] == 2)
    compiled = set((run.storage / "cache" / "compiled" / "fxgraph").rglob("*"))
    assert compiled
    run.succeed()
    assert set((run.storage / "cache" / "compiled" / "fxgraph").rglob("*")) == compiled


def truncate_shard(checkpoint: Path) -> None:
    shard = checkpoint / "__0_0.distcp"
    os.truncate(shard, shard.stat().st_size // 2)


@pytest.mark.parametrize(
    ("break_", "told"),
    [(truncate_shard, "bytes instead of"), pytest.param(shutil.rmtree, "is gone", marks=pytest.mark.full)],
)
def test_a_broken_newest_checkpoint_is_told_and_the_one_before_it_is_taken(
    run: LocalRun, undisturbed: LocalRun, break_: Callable[[Path], None], told: str
) -> None:
    # Rank 0 stands still before step 8 is saved, so that step 6 stays the newest.
    mark = run.folder / "stands-still"
    fault = {"event": "open", "pattern": r"step-8\.tmp-a1/__0_0\.distcp", "after": 0, "mark": str(mark)}
    run.environment = {"PYTHONPATH": FAULTS, "SFTJOB_TEST_FAULT": json.dumps(fault | {"signal": "SIGSTOP"})}
    run.start()
    run.until(mark.exists)
    break_(run.storage / "step-6")
    kill(run.rank(0))
    run.succeed()

    last, first = run.status()["attempts"]["history"]
    assert first["reason"] == "RankKilled"
    assert last["resumedFrom"] == 4
    assert [line.split(":")[0] for line in last["skippedCheckpoints"]] == ["step-6"]
    assert told in last["skippedCheckpoints"][0]
    assert_bit_equal(run, undisturbed)


# Around step 4, of attempt 1: what each leaves on disk differs.
MOMENTS = {
    "before the shards are written": ("open", r"step-4\.tmp-a1/__0_0\.distcp", 0),
    "before the hashes": ("open", r"step-4\.tmp-a1/__0_0\.distcp r", 0),
    "before the manifest": ("os.rename", r"step-4\.tmp-a1/manifest\.json", 0),
    "before the last sync": ("open", r"step-4\.tmp-a1/manifest\.json None", 0),
    "before the rename": ("os.rename", r"step-4\.tmp-a1 \S+step-4 ", 0),
    "after the rename": ("os.rename", r"/latest ", 1),
    "in retention": ("os.rename", r"step-2 \S+step-2\.tmp-a1", 0),
}
IN_TEST = (("before the rename", "async"),)


@pytest.mark.parametrize(
    ("moment", "mode"),
    [
        pytest.param(*case, marks=() if case in IN_TEST else pytest.mark.full)
        for case in itertools.product(MOMENTS, ("sync", "async"))
    ],
)
def test_a_rank_killed_inside_a_save_leaves_a_checkpoint_to_go_on_from(
    run: LocalRun, undisturbed: LocalRun, moment: str, mode: str
) -> None:
    """Undisturbed, all saves were made between steps."""
    run.manifest["spec"]["checkpoint"]["saveMode"] = mode
    event, pattern, after = MOMENTS[moment]
    mark = run.folder / "killed"
    run.environment = {
        "PYTHONPATH": FAULTS,
        "SFTJOB_TEST_FAULT": json.dumps(
            {"event": event, "pattern": pattern, "after": after, "mark": str(mark), "signal": "SIGKILL"}
        ),
    }
    run.start().succeed()
    assert mark.exists()
    last, first = run.status()["attempts"]["history"]
    assert (first["reason"], first["rank"], first["signal"]) == ("RankKilled", 0, signal.SIGKILL)
    assert last["resumedFrom"] == first["savedStep"] == {"after the rename": 4, "in retention": 6}.get(moment, 2)
    assert not [path for path in run.storage.iterdir() if ".tmp-" in path.name]
    assert_bit_equal(run, undisturbed)


@pytest.mark.full
def test_a_rank_killed_at_the_end_of_an_epoch_goes_on_in_the_next_one(run: LocalRun, undisturbed: LocalRun) -> None:
    """An epoch has as many packs as the receipt says; its end lies within the 12 steps of 4 packs."""
    receipt = undisturbed.status()["data"]
    step = -(-receipt["packs"] // 4)
    assert 1 < step < TOTAL_STEPS
    run.start()
    run.until_step(step)
    kill(run.rank(0))
    run.succeed()
    seen = [sample for line in run.metrics().values() for sample in line["samples"]]
    assert sorted(seen[: receipt["samples"]]) == list(range(receipt["samples"]))
    assert_bit_equal(run, undisturbed)


def test_ranks_that_are_no_forks_train_the_same(run: LocalRun, undisturbed: LocalRun) -> None:
    """As on a machine where a library opens the GPU when it is imported."""
    run.environment = {"PYTHONPATH": FAULTS, "SFTJOB_TEST_NO_FORKS": "1"}
    run.start()
    pid = run.rank(0)
    assert b"sft_trainer.child\0rank" in Path(f"/proc/{pid}/cmdline").read_bytes()
    run.succeed()
    log = (run.folder / "attempts/1/node-0/launcher.log").read_text()
    assert "ranks are no forks: an import has opened /" in log
    assert_bit_equal(run, undisturbed)


@pytest.mark.full
@pytest.mark.parametrize("victim", ["sft-torchrun", "sft_trainer.launcher --plan"])
def test_no_rank_outlives_its_launcher_or_torchrun(run: LocalRun, undisturbed: LocalRun, victim: str) -> None:
    run.start()
    run.until_step(3)
    ranks = set(run.processes("sft-rank"))
    assert len(ranks) == 2
    (pid,) = run.processes(victim)
    kill(pid)
    run.until(lambda: not ranks & set(run.processes("sft-rank")))
    run.succeed()
    reasons = [record["reason"] for record in reversed(run.status()["attempts"]["history"])]
    assert reasons == ["TorchrunLost" if "torchrun" in victim else "LauncherLost", "Succeeded"]
    assert_bit_equal(run, undisturbed)


@pytest.mark.full
def test_a_rank_that_ignores_sigterm_delays_the_end_by_seconds_only(run: LocalRun) -> None:
    run.start()
    run.until_step(3)
    deaf, victim = run.rank(0), run.rank(1)
    os.kill(deaf, signal.SIGSTOP)
    began = time.monotonic()
    kill(victim)
    run.until(lambda: run.status()["attempts"]["history"])
    seconds = time.monotonic() - began
    print(f"from the kill to the recorded end: {seconds:.1f} s")
    # torch's own limit is 30 s.
    assert seconds < 28
    (record,) = run.status()["attempts"]["history"]
    assert (record["reason"], record["rank"]) == ("RankKilled", 1)
    run.succeed()


@pytest.mark.full
def test_the_system_s_temporary_folder_stays_as_it_was(run: LocalRun, tmp_path: Path) -> None:
    temporary = tmp_path / "system-tmp"
    temporary.mkdir()
    run.environment = {"TMPDIR": str(temporary)}
    run.start()
    run.until_step(3)
    kill(run.rank(0))
    run.succeed()
    assert list(temporary.iterdir()) == []
    assert not list(run.folder.glob("attempts/*/node-0/tmp")) + list(run.folder.glob("attempts/*/node-0/torchelastic"))
