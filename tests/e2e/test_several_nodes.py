"""One rank on each of two nodes, met by torchrun's static rendezvous: what two ranks on one node train, and no less."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.local_run import EVERY_STEPS, FAULTS, LocalRun, assert_bit_equal, job, kill


@pytest.fixture(scope="module")
def undisturbed_nodes(tmp_path_factory: pytest.TempPathFactory, smollm2: Path, chats: Path) -> LocalRun:
    return two_nodes(tmp_path_factory.mktemp("undisturbed-nodes"), tokenizer=smollm2, data=chats).start().succeed()


@pytest.fixture
def run(tmp_path: Path, smollm2: Path, chats: Path) -> Iterator[LocalRun]:
    run = two_nodes(tmp_path, tokenizer=smollm2, data=chats)
    yield run
    run.stop()


def two_nodes(folder: Path, *, tokenizer: Path, data: Path) -> LocalRun:
    return LocalRun(
        folder, job(tokenizer=tokenizer.as_uri(), data=data.as_uri(), compute={"nodes": 2, "processesPerNode": 1})
    )


def test_two_nodes_train_what_one_node_of_two_ranks_trains(undisturbed_nodes: LocalRun, undisturbed: LocalRun) -> None:
    ours, theirs = undisturbed_nodes.metrics(), undisturbed.metrics()
    assert [line["samples"] for line in ours.values()] == [line["samples"] for line in theirs.values()]
    # Not to the bit: a rank alone on its node has more threads, which sum in another order.
    assert [line["loss"] for line in ours.values()] == pytest.approx([line["loss"] for line in theirs.values()], 1e-5)
    (record,) = undisturbed_nodes.status()["attempts"]["history"]
    assert record["reason"] == "Succeeded"


def test_a_killed_rank_of_another_node_is_named_and_the_run_ends_bit_equal(
    run: LocalRun, undisturbed_nodes: LocalRun
) -> None:
    run.start()
    run.until_step(5)
    kill(run.rank(1))
    run.succeed()
    last, first = run.status()["attempts"]["history"]
    assert (first["reason"], first["nodeRank"], first["rank"], first["signal"]) == ("RankKilled", 1, 1, signal.SIGKILL)
    assert "rank 1 of 2" in first["logTail"]
    assert last["reason"] == "Succeeded"
    assert last["resumedFrom"] == first["savedStep"] >= 4
    assert last["resumedFrom"] % EVERY_STEPS == 0
    assert_bit_equal(run, undisturbed_nodes)


@pytest.mark.full
def test_ctrl_c_saves_one_step_of_both_nodes_and_the_same_command_goes_on(
    run: LocalRun, undisturbed_nodes: LocalRun
) -> None:
    run.start()
    run.until_step(3)
    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 128 + signal.SIGINT
    (stopped,) = run.status()["attempts"]["history"]
    assert (stopped["reason"], stopped["savedStep"]) == ("Preempted", stopped["lastStep"])
    assert run.processes("sft_trainer") == {}
    run.start().succeed()
    assert run.status()["attempts"]["history"][0]["resumedFrom"] == stopped["savedStep"]
    assert_bit_equal(run, undisturbed_nodes)


@pytest.mark.full
def test_of_two_nodes_that_stand_still_the_one_with_the_rank_that_never_comes_back_is_named(
    run: LocalRun, undisturbed_nodes: LocalRun
) -> None:
    stay = {"module": "sft_trainer.datasets.batch", "function": "BatchStream.micro_batches", "after": 4, "limit": 8}
    stay |= {"rank": 1, "mark": str(run.folder / "stuck")}
    run.environment = {"PYTHONPATH": FAULTS, "SFTJOB_TEST_STAY": json.dumps(stay)}
    run.start().succeed()
    last, hang = run.status()["attempts"]["history"]
    assert (hang["reason"], hang["nodeRank"], hang["rank"], last["reason"]) == ("Hang", 1, 1, "Succeeded")
    assert "rank 1 stood in Training after step 4 at stays_for_ever (" in hang["message"]
    assert hang["standstill"]["stacks"].endswith("/attempts/1/stacks-node-1.txt")
    stacks = run.storage / "attempts" / "1"
    assert "in stays_for_ever" in (stacks / "stacks-node-1.txt").read_text()
    # The other one waited for it, and says so.
    assert "/torch/distributed/" in (stacks / "stacks-node-0.txt").read_text()
    assert last["resumedFrom"] == hang["savedStep"]
    assert_bit_equal(run, undisturbed_nodes)
