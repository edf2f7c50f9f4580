"""Which end explains an attempt, and what the ranks may use of a machine."""

import math
from pathlib import Path

import pytest
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from sft_trainer.launcher.cause import Cause, cause_of_failure, stage_failure
from sft_trainer.launcher.placement import wait_for_name
from sft_trainer.launcher.resources import available_cpus, rank_environment
from sft_trainer.report import Report
from sft_trainer.train.schedule import learning_rate
from sft_trainer.train.stop import save_fits
from sftjob.failure import Reason
from sftjob.options import LRConfig
from sftjob.progress import Stage

LOST = Report(reason=Reason.RANK_FAILED, message="Connection reset by peer", peer_lost=True)
STOPPED = Report(reason=Reason.PREEMPTED, message="stopped by SIGTERM", saved=False)


def test_a_killed_rank_is_the_cause_whatever_the_survivors_say() -> None:
    cause = cause_of_failure(exit_codes={0: 70, 1: -9}, reports={0: LOST}, stopping=False, torchrun_code=1)
    assert cause == Cause(Reason.RANK_KILLED, "rank 1 was ended by SIGKILL", rank=1, signal=9)
    assert cause_of_failure(exit_codes={1: -9}, reports={0: STOPPED}, stopping=False, torchrun_code=1).rank == 1


def test_a_rank_that_dies_while_all_are_stopped_is_no_failure() -> None:
    for reports in ({0: STOPPED}, {0: LOST}, {}):
        assert (
            cause_of_failure(exit_codes={1: -9}, reports=reports, stopping=True, torchrun_code=1).reason
            is Reason.PREEMPTED
        )
    bad = Report(reason=Reason.INVALID_DATA, message="chats.jsonl:3: ...")
    assert (
        cause_of_failure(exit_codes={}, reports={0: bad}, stopping=True, torchrun_code=1).reason is Reason.INVALID_DATA
    )


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    cause = cause_of_failure(exit_codes={1: -61}, reports={}, stopping=False, torchrun_code=1)
    assert (cause.reason, cause.message) == (Reason.RANK_KILLED, "rank 1 was ended by signal 61")


def test_what_a_user_can_mend_comes_before_a_signal() -> None:
    bad = Report(reason=Reason.INVALID_DATA, message="chats.jsonl:3: ...")
    cause = cause_of_failure(exit_codes={0: 65, 1: -9}, reports={0: bad, 1: LOST}, stopping=False, torchrun_code=1)
    assert (cause.reason, cause.rank) == (Reason.INVALID_DATA, 0)


def test_a_rank_that_lost_its_peer_is_not_the_cause_where_another_failed_by_itself() -> None:
    own = Report(reason=Reason.RANK_FAILED, message="ZeroDivisionError")
    assert (
        cause_of_failure(exit_codes={0: 70, 1: 70}, reports={0: LOST, 1: own}, stopping=False, torchrun_code=1).rank
        == 1
    )


def test_a_stop_that_all_ranks_heard_is_a_preemption() -> None:
    cause = cause_of_failure(
        exit_codes={0: 75, 1: 75}, reports={0: STOPPED, 1: STOPPED}, stopping=True, torchrun_code=1
    )
    assert cause.reason is Reason.PREEMPTED
    assert cause_of_failure(exit_codes={}, reports={}, stopping=True, torchrun_code=1).reason is Reason.PREEMPTED
    # Of one rank alone: its launcher was told nothing.
    assert (
        cause_of_failure(exit_codes={0: 75}, reports={0: STOPPED}, stopping=False, torchrun_code=1).reason
        is Reason.PREEMPTED
    )
    assert cause_of_failure(exit_codes={}, reports={}, stopping=False, torchrun_code=1).reason is Reason.TORCHRUN_LOST


@pytest.mark.parametrize(
    ("code", "message", "by"),
    [
        (-9, "stage PreparingData was ended by SIGKILL", 9),
        (137, "stage PreparingData was ended by SIGKILL", 9),
        (1, "stage PreparingData ended with exit code 1", None),
    ],
)
def test_a_stage_without_a_word_is_told_with_what_ended_it(code: int, message: str, by: int | None) -> None:
    assert stage_failure(Stage.PREPARING_DATA, code) == Cause(Reason.LAUNCHER_FAILED, message, signal=by)


def test_a_torchrun_that_was_ended_by_a_signal_is_told_with_it() -> None:
    cause = cause_of_failure(exit_codes={}, reports={}, stopping=False, torchrun_code=-9)
    assert cause == Cause(Reason.TORCHRUN_LOST, "torchrun was ended by SIGKILL", signal=9)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1.0),
    ],
)
def test_cpus_come_from_the_cgroup_s_quota(tmp_path: Path, files: dict[str, str], cpus: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cpus(tmp_path) == cpus


def test_threads_are_shared_by_the_ranks_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert rank_environment(processes_per_node=2, cpus=8.5)["OMP_NUM_THREADS"] == "4"
    assert rank_environment(processes_per_node=4, cpus=2)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert rank_environment(processes_per_node=4, cpus=2)["OMP_NUM_THREADS"] == "3"


def test_a_save_that_would_outlast_the_grace_period_is_not_begun() -> None:
    assert save_fits(seconds_ago=1, save_seconds=10, grace_seconds=30)
    assert not save_fits(seconds_ago=10, save_seconds=10, grace_seconds=30)


def test_the_cosine_is_that_of_transformers() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 10, 100, min_lr=1e-5)
    config = LRConfig(lr_type="cosine", lr_min=1e-5, warmup_ratio=0.1)
    for step in range(1, 101):
        optimizer.step()
        schedule.step()
        rate = learning_rate(config, peak=1e-3, step=step, total_steps=100)
        assert math.isclose(rate, schedule.get_last_lr()[0], rel_tol=1e-9)


def test_a_node_waits_for_the_name_of_node_zero_until_it_is_told_to_stop() -> None:
    asked = 0

    def is_stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    wait_for_name("nowhere.invalid", is_stopped=is_stopped)
    assert asked == 3
    wait_for_name("localhost", is_stopped=lambda: False)
