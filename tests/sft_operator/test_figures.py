"""What a status tells of time: GPU seconds used and lost, and how long a recovery took part by part."""

from typing import Any

import pytest
from jobs import NOW, a_job, a_success, an_outcome, at, in_attempt, observing, seen, some_progress

from sft_operator.lifecycle.decide import decide
from sft_operator.lifecycle.observation import NodeState
from sftjob.failure import Reason
from sftjob.progress import Progress, Stage
from sftjob.receipt import DataReceipt, DatasetReceipt
from sftjob.status import Recovery, SFTJobStatus, Usage

RUNNING, PENDING = NodeState.RUNNING, NodeState.PENDING


@pytest.mark.parametrize(
    ("outcome", "lost"),
    [
        (a_success(last_step=30, saved_step=30), 0),
        # Of 20 steps, from 10 on, 5 are in no checkpoint.
        (an_outcome(Reason.RANK_KILLED, resumed_from=10, last_step=30, saved_step=25), 200),
        (an_outcome(Reason.PREEMPTED, resumed_from=10, last_step=30, saved_step=30), 0),
        (an_outcome(Reason.RANK_KILLED, resumed_from=10, last_step=30, saved_step=10), 800),
        (an_outcome(Reason.RANK_KILLED, resumed_from=10, last_step=10, saved_step=10), 800),
        (an_outcome(Reason.RANK_KILLED), 800),
        (None, 800),
    ],
)
def test_gpu_time_is_lost_by_the_share_of_steps_that_no_checkpoint_has(outcome: Any, lost: int) -> None:
    status = in_attempt(1, running_since=at(-100)).model_copy(
        update={"usage": Usage(gpu_seconds=1000, lost_gpu_seconds=10)}
    )
    ended = decide(a_job(status=status, gpus=8), observing(seen(1, outcome)), now=NOW).status
    assert ended.usage == Usage(gpu_seconds=1800, lost_gpu_seconds=10 + lost)


def test_the_gpus_of_all_nodes_count_and_a_job_without_any_tells_nothing() -> None:
    status = in_attempt(1, running_since=at(-100))
    ended = observing(seen(1, None, None))
    assert decide(a_job(nodes=2, status=status, gpus=4), ended, now=NOW).status.usage == Usage(
        gpu_seconds=800, lost_gpu_seconds=800
    )
    assert decide(a_job(nodes=2, status=status), ended, now=NOW).status.usage is None


def test_an_attempt_that_went_while_nobody_looked_ran_until_its_last_report() -> None:
    status = in_attempt(1, running_since=at(-30_000))
    status = status.model_copy(update={"progress": some_progress(seconds=-28_000)})
    back = decide(a_job(status=status, gpus=8), observing(), now=NOW).status
    assert back.attempts.history[0].reason is Reason.LAUNCHER_LOST
    assert back.attempts.running_seconds == 2000
    assert back.usage == Usage(gpu_seconds=16_000, lost_gpu_seconds=16_000)


def told(
    status: SFTJobStatus, seconds: float, *nodes: Any, number: int = 2, progress: Progress | None = None
) -> SFTJobStatus:
    observed = [seen(number, *nodes)] if nodes else []
    return decide(a_job(nodes=2, status=status), observing(*observed, progress=progress), now=at(seconds)).status


def test_a_recovery_is_told_part_by_part_as_each_is_over() -> None:
    killed = an_outcome(Reason.RANK_KILLED, ended=-2, last_step=5, saved_step=4)
    status = told(in_attempt(1, running_since=at(-50)), 0, killed, RUNNING, number=1)
    status = told(status, 3, killed, RUNNING, number=1)
    status = told(status, 7, killed, an_outcome(Reason.PREEMPTED, node_rank=1, ended=6), number=1)
    assert status.attempts.recovery == Recovery(detect_seconds=2, clean_up_seconds=7, since=at(7))
    status = told(status, 8)
    assert status.attempts.current == 2
    # The attempt before trained; this one doesn't yet.
    loading = Progress(attempt=2, stage=Stage.LOADING_CHECKPOINT, resumed_from=4, step=4, reported_at=at(15))
    status = told(status, 12, RUNNING, PENDING, progress=some_progress(step=5))
    status = told(status, 15, RUNNING, RUNNING, progress=loading)
    assert status.attempts.recovery == Recovery(detect_seconds=2, clean_up_seconds=7, start_seconds=5, since=at(12))
    training = some_progress(attempt=2, step=4, resumed_from=4, seconds=31)
    status = told(status, 32, RUNNING, RUNNING, progress=training)
    first = some_progress(attempt=2, step=5, resumed_from=4, seconds=34)
    status = told(status, 35, RUNNING, RUNNING, progress=first)
    whole = Recovery(
        detect_seconds=2, clean_up_seconds=7, start_seconds=5, load_seconds=20, first_step_seconds=3, since=at(35)
    )
    assert status.attempts.recovery == whole
    assert told(status, 99, RUNNING, RUNNING, progress=first) == status

    ended = told(status, 100, a_success(attempt=2), an_outcome(Reason.SUCCEEDED, attempt=2, node_rank=1))
    assert ended.attempts.history[0].recovery == whole.model_copy(update={"since": None})
    assert ended.attempts.history[1].recovery is None
    assert ended.attempts.recovery is None


def test_a_part_that_nobody_saw_the_end_of_is_absent() -> None:
    begun = in_attempt(2, recovery=Recovery(detect_seconds=1, clean_up_seconds=1, since=at(-60)))
    ended = told(begun, 0, an_outcome(Reason.RANK_KILLED, attempt=2), None)
    assert ended.attempts.history[0].recovery == Recovery(detect_seconds=1, clean_up_seconds=1)


def test_a_suspension_is_no_recovery() -> None:
    status = in_attempt(1, running_since=at(-50))
    stopping = decide(a_job(status=status, suspend=True), observing(seen(1, RUNNING)), now=NOW).status
    stopped = observing(seen(1, an_outcome(Reason.PREEMPTED)))
    assert decide(a_job(status=stopping, suspend=True), stopped, now=at(9)).status.attempts.recovery is None
    # Nor is the time of one that comes while the next attempt is awaited.
    lost = decide(a_job(status=status), observing(seen(1, None)), now=NOW).status
    assert lost.attempts.recovery is not None
    assert decide(a_job(status=lost, suspend=True), observing(), now=at(9)).status.attempts.recovery is None


def after_eleven_failures(*, message: str, log_tail: str) -> SFTJobStatus:
    """Each attempt told that much."""
    status = SFTJobStatus()
    for number in range(1, 12):
        loud = an_outcome(Reason.RANK_KILLED, attempt=number, message=message, log_tail=log_tail)
        status = in_attempt(number, running_since=at(-5)).model_copy(
            update={"attempts": status.attempts.model_copy(update={"current": number, "running_since": at(-5)})}
        )
        status = decide(a_job(status=status, retries=100), observing(seen(number, loud)), now=NOW).status
    return status


def test_a_status_of_ten_long_stories_stays_under_16_kib_and_tells_the_newest_whole() -> None:
    status = after_eleven_failures(message="m" * 1600, log_tail="t" * 2000)
    newest, *older = status.attempts.history
    assert (newest.message, newest.log_tail) == ("m" * 1600, "t" * 600)
    assert [(len(record.message), len(record.log_tail)) for record in older] == [(400, 200)] * 9
    assert len(status.to_json().encode()) < 16 * 1024


def test_a_receipt_of_many_datasets_gives_way_to_its_sums_where_a_status_has_no_room_for_it() -> None:
    counts: dict[str, Any] = {"samples": 2**40, "tokens": 2**50, "trained_tokens": 2**50}
    datasets = [DatasetReceipt(name="d" * 63, format="prompt-completion", **counts) for _ in range(64)]
    receipt = DataReceipt(packs=7, first_bad_lines=["r" * 200] * 20, datasets=datasets, **counts)
    seen_running = observing(seen(1, RUNNING), progress=some_progress(step=1, data=receipt))
    status = decide(a_job(status=in_attempt(1)), seen_running, now=NOW).status
    assert len(status.to_json().encode()) < 16 * 1024
    assert status.data == DataReceipt(packs=7, **counts)
    assert decide(a_job(status=status), seen_running, now=NOW).status == status


def test_the_newest_story_gives_way_last_and_in_bytes() -> None:
    status = after_eleven_failures(message="█" * 1600, log_tail="█" * 600)
    newest, *older = status.attempts.history
    assert (newest.message, newest.log_tail) == ("█" * 1600, "█" * 600)
    assert {(record.message, record.log_tail) for record in older} == {("█" * 60, "")}
    assert len(status.to_json().encode()) < 16 * 1024


def test_the_image_of_the_attempts_to_come_is_never_cut() -> None:
    image = "registry.example.com/" + "team/" * 10 + "sft-trainer@sha256:" + "0" * 64
    strange = some_progress(step=1).model_copy(update={"stage": Stage("s" * 30_000)})
    running = observing(seen(1, RUNNING), progress=strange)
    status = decide(a_job(status=in_attempt(1, image=image)), running, now=NOW).status
    assert len(status.to_json().encode()) < 16 * 1024
    assert status.attempts.image == image
