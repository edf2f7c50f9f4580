"""What becomes of what launchers found where their ranks stood still: whose rank is to blame, and the words for it."""

from typing import Any

import pytest
from jobs import a_job, an_outcome, at, in_attempt, observing, seen, some_progress

from sft_operator.lifecycle.decide import Decision, DeleteAttempt, decide
from sft_operator.lifecycle.observation import AttemptObservation, NodeObservation, NodeState
from sftjob.failure import Reason
from sftjob.job import SFTJob
from sftjob.progress import Stage
from sftjob.standstill import Standstill
from sftjob.status import AttemptRecord

NOW, RUNNING = at(0), NodeState.RUNNING


def going_on(decision: Decision, *, nodes: int = 1, **policy: int) -> SFTJob:
    """The same job after this decision was written."""
    return a_job(nodes=nodes, status=decision.status, **policy)


def stood(rank: int | None, *, place: int, node: int, **fields: Any) -> Standstill:
    return Standstill(
        rank=rank,
        stage=Stage.TRAINING,
        step=41,
        place=place,
        seconds=480,
        frames=[f"read_{rank} (me/data.py:12)", "_train_step (train/loop.py:250)"],
        stacks=f"pvc://ckpt/a/attempts/1/stacks-node-{node}.txt",
        **fields,
    )


LAUNCHER_SAYS = "no rank went on for 480 s; where that is just long, set spec.runPolicy.progressDeadlineSeconds"


def a_hang(standstill: Standstill, *, node: int, ended: float = 0) -> Any:
    return an_outcome(
        Reason.HANG,
        node_rank=node,
        ended=ended,
        message=LAUNCHER_SAYS,
        rank=standstill.rank,
        standstill=standstill,
        log_tail=f"log of {node}",
    )


def last_record(job: Any, attempt: AttemptObservation, *, seconds: float = 0) -> AttemptRecord:
    return decide(job, observing(attempt, progress=some_progress(step=41)), now=at(seconds)).status.attempts.history[0]


def test_of_several_nodes_the_one_whose_rank_is_furthest_behind_is_to_blame_whoever_ended_first() -> None:
    here = NodeObservation(0, NodeState.ENDED, a_hang(stood(3, place=57, node=0, waits=True), node=0), "pod-0", "n0")
    there = NodeObservation(1, NodeState.ENDED, a_hang(stood(9, place=56, node=1), node=1, ended=5), "pod-1", "n1")
    record = last_record(a_job(nodes=2, status=in_attempt(1)), AttemptObservation(1, (here, there)), seconds=6)
    assert (record.reason, record.rank, record.node_rank) == (Reason.HANG, 9, 1)
    assert (record.pod, record.node, record.log_tail) == ("pod-1", "n1", "log of 1")
    assert record.standstill == stood(9, place=56, node=1)
    assert record.message == (
        f"{LAUNCHER_SAYS}; rank 9 stood in Training after step 41 at read_9 (me/data.py:12) < _train_step "
        "(train/loop.py:250); stacks: pvc://ckpt/a/attempts/1/stacks-node-1.txt"
    )


@pytest.mark.parametrize(
    ("other", "blamed"),
    [
        ({"place": 57, "waits": True}, 0),
        ({"place": 57, "waits": True, "state": "T"}, 1),
        ({"place": 56, "waits": True}, 1),
    ],
)
def test_a_rank_that_a_signal_stopped_is_to_blame_then_one_that_waits_for_nobody(
    other: dict[str, Any], blamed: int
) -> None:
    outcomes = a_hang(stood(0, place=57, node=0), node=0), a_hang(stood(1, node=1, **other), node=1)
    assert last_record(a_job(nodes=2, status=in_attempt(1)), seen(1, *outcomes)).rank == blamed


def test_what_was_known_when_the_first_node_ended_stands_once_in_the_message() -> None:
    job = a_job(nodes=2, status=in_attempt(1))
    first = decide(job, observing(seen(1, RUNNING, a_hang(stood(1, place=56, node=1), node=1))), now=NOW)
    assert first.action == DeleteAttempt(1)
    # The pod that knew it is gone by then.
    waiting = an_outcome(Reason.PREEMPTED, standstill=stood(0, place=57, node=0, waits=True), ended=9)
    record = last_record(going_on(first, nodes=2), seen(1, waiting, None), seconds=9)
    assert (record.reason, record.rank, record.node_rank) == (Reason.HANG, 1, 1)
    assert record.message.count("stood in Training") == 1
    assert "rank 1 stood" in record.message


def test_a_deadline_of_the_user_is_explained_by_what_the_launchers_found_when_they_were_stopped() -> None:
    job = a_job(status=in_attempt(1, running_since=at(-50)), progressDeadlineSeconds=60)
    late = decide(job, observing(seen(1, RUNNING), progress=some_progress(step=41), silent_seconds=60), now=NOW)
    assert late.action == DeleteAttempt(1)
    stopped = an_outcome(Reason.PREEMPTED, standstill=stood(1, place=56, node=0, state="T"), ended=60)
    record = last_record(going_on(late, progressDeadlineSeconds=60), seen(1, stopped), seconds=60)
    assert (record.reason, record.rank, record.node_rank) == (Reason.HANG, 1, 0)
    assert record.message == (
        "spec.runPolicy.progressDeadlineSeconds: no progress for 60 s in stage Training after step 41; rank 1 stood in "
        "Training after step 41, stopped by a signal at read_1 (me/data.py:12) < _train_step (train/loop.py:250); "
        "stacks: pvc://ckpt/a/attempts/1/stacks-node-0.txt"
    )


def test_ranks_that_did_not_react_to_a_stop_are_told_and_nobody_is_blamed() -> None:
    stopped = an_outcome(Reason.PREEMPTED, message="stopped", standstill=stood(1, place=56, node=0))
    record = last_record(a_job(status=in_attempt(1)), seen(1, stopped))
    assert (record.reason, record.rank) == (Reason.PREEMPTED, None)
    assert record.message.startswith("stopped; rank 1 stood in Training after step 41 at read_1 (")


def test_ranks_that_cannot_be_told_apart_are_told_together() -> None:
    record = last_record(a_job(status=in_attempt(1)), seen(1, a_hang(stood(None, place=57, node=0), node=0)))
    assert (record.reason, record.rank) == (Reason.HANG, None)
    assert "; all ranks stood in Training after step 41 at " in record.message
    silent = Standstill(rank=0, stage=Stage.SAVING, state="D")
    assert silent.told() == (
        "rank 0 stood in Saving after step 0, in a system call that can't be interrupted, and gave no stack"
    )


def test_a_hang_uses_a_retry_and_older_records_keep_the_file_but_not_the_frames() -> None:
    job = a_job(status=in_attempt(1))
    hung = decide(job, observing(seen(1, a_hang(stood(1, place=56, node=0), node=0))), now=NOW)
    assert (hung.status.attempts.failures, hung.status.attempts.disruptions) == (1, 0)
    again = decide(going_on(hung), observing(), now=at(60))
    next_one = decide(going_on(again), observing(seen(2, an_outcome(Reason.RANK_FAILED, attempt=2))), now=at(61))
    older = next_one.status.attempts.history[1]
    assert older.standstill == stood(1, place=56, node=0).model_copy(update={"frames": []})


def test_zero_is_no_limit_at_all() -> None:
    job = a_job(status=in_attempt(1), progressDeadlineSeconds=0)
    assert decide(job, observing(seen(1, RUNNING), silent_seconds=1e6), now=NOW).action is None
