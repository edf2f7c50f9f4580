"""Two nodes that share nothing but a bucket: each works on a copy of its own, killed and resumed to the bit."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.bucket_run import STEPS, BucketRun, bucket_job
from e2e.local_run import FAULTS, fingerprint, kill
from s3_server import S3Server

CHECKPOINTS = "killed/model.checkpoints"
TWO_NODES = {"nodes": 2, "processesPerNode": 1}


@pytest.fixture
def run(tmp_path: Path, sources: S3Server) -> Iterator[BucketRun]:
    run = BucketRun(tmp_path / "run", bucket_job("killed", compute=TWO_NODES), sources.environment)
    yield run
    run.stop()


@pytest.fixture
def undisturbed(tmp_path: Path, sources: S3Server) -> BucketRun:
    job = bucket_job("undisturbed", compute=TWO_NODES)
    return BucketRun(tmp_path / "undisturbed", job, sources.environment).start().succeed()


def assert_bit_equal(run: BucketRun, undisturbed: BucketRun, s3: S3Server) -> None:
    """Losses, norms and samples, what the last checkpoint holds of both nodes, and the model."""
    assert run.trained() == undisturbed.trained()
    folders = [one.folder / "fetched" for one in (run, undisturbed)]
    states = []
    for one, folder in zip((run, undisturbed), folders, strict=True):
        states.append(one.fetched(s3).final_state(step=STEPS))
        s3.fetch_folder(f"{one.name}/model", folder / "model")
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []
    ours, theirs = (fingerprint(folder / "model")["model.safetensors"] for folder in folders)
    assert ours == theirs


def test_killed_between_a_node_s_files_and_the_manifest_it_goes_on_though_that_node_s_copy_is_gone(
    run: BucketRun, undisturbed: BucketRun, s3: S3Server
) -> None:
    held = s3.hold("PUT", rf"{CHECKPOINTS}/step-4/manifest\.json")
    run.start()
    run.until(held.reached.is_set)
    assert f"{CHECKPOINTS}/step-4/__1_0.distcp" in s3.listed(f"{CHECKPOINTS}/step-4")
    assert (run.folder / "node-1/s3/bucket" / CHECKPOINTS / "cache").is_dir()
    ranks, launchers = [run.rank(0), run.rank(1)], run.processes("sft_trainer.launcher --plan")
    assert run.process is not None
    run.process.send_signal(signal.SIGSTOP)
    for pid in [ranks[1], *launchers]:
        kill(pid)
    run.until(lambda: ranks[0] not in run.processes("sft-rank"))
    s3.forget(held)
    shutil.rmtree(run.folder / "node-1")
    run.process.send_signal(signal.SIGCONT)
    run.succeed()

    last, first = run.status()["attempts"]["history"]
    assert (last["reason"], last["resumedFrom"], first["reason"]) == ("Succeeded", 3, "LauncherLost")
    assert_bit_equal(run, undisturbed, s3)
    for rank in range(2):
        ledger = s3.get(f"{CHECKPOINTS}/attempts/2/ledger-{rank}.jsonl").decode().splitlines()
        assert json.loads(ledger[-1])["step"] == STEPS
        claim = json.loads(s3.get(f"{CHECKPOINTS}/attempts/2/node-{rank}.json"))
        assert claim["outcome"]["reason"] == "Succeeded"


@pytest.mark.full
def test_a_killed_rank_of_another_node_is_named_and_the_run_ends_bit_equal(
    run: BucketRun, undisturbed: BucketRun, s3: S3Server
) -> None:
    run.start()
    run.until_step(4)
    kill(run.rank(1))
    run.succeed()
    last, first = run.status()["attempts"]["history"]
    assert (first["reason"], first["nodeRank"], first["rank"]) == ("RankKilled", 1, 1)
    assert last["resumedFrom"] == first["savedStep"]
    assert_bit_equal(run, undisturbed, s3)


@pytest.mark.full
def test_of_two_nodes_that_stand_still_each_sees_the_other_in_the_bucket(
    run: BucketRun, undisturbed: BucketRun, s3: S3Server
) -> None:
    stay = {"module": "sft_trainer.datasets.batch", "function": "BatchStream.micro_batches", "after": 2, "limit": 8}
    stay |= {"rank": 1, "mark": str(run.folder / "stuck")}
    run.environment = run.environment | {"PYTHONPATH": FAULTS, "SFTJOB_TEST_STAY": json.dumps(stay)}
    run.start().succeed()
    last, hang = run.status()["attempts"]["history"]
    assert (hang["reason"], hang["nodeRank"], hang["rank"], last["reason"]) == ("Hang", 1, 1, "Succeeded")
    assert hang["standstill"]["stacks"] == f"s3://bucket/{CHECKPOINTS}/attempts/1/stacks-node-1.txt"
    assert b"in stays_for_ever" in s3.get(f"{CHECKPOINTS}/attempts/1/stacks-node-1.txt")
    # The other one waited for it, and says so.
    assert b"/torch/distributed/" in s3.get(f"{CHECKPOINTS}/attempts/1/stacks-node-0.txt")
    assert last["resumedFrom"] == hang["savedStep"]
    assert_bit_equal(run, undisturbed, s3)
