"""For how long an attempt shows nothing new, by what this process itself has seen."""

from typing import Any

import pytest
from jobs import seen, some_progress

from sft_operator.lifecycle.observation import NodeState
from sft_operator.lifecycle.silence import Silence
from sftjob.progress import Stage

RUNNING, PENDING = NodeState.RUNNING, NodeState.PENDING


def seconds(
    silence: Silence, now: float, progress: Any, *, heard_at: float | None = None, attempt: Any = None
) -> float:
    heard_at = now if heard_at is None else heard_at
    return silence.seconds("uid", attempt or seen(1, RUNNING), progress, heard_at=heard_at, now=now)


def test_it_counts_from_the_last_change_and_a_newer_report_of_the_same_is_none() -> None:
    silence = Silence()
    assert seconds(silence, 1000, some_progress(step=5)) == 0
    assert seconds(silence, 1030, some_progress(step=5, seconds=30)) == 30
    assert seconds(silence, 1040, some_progress(step=6)) == 0
    assert seconds(silence, 1055, some_progress(step=6)) == 15


@pytest.mark.parametrize(
    "change", [{"stage": Stage.EXPORTING}, {"detail": "812 of 1319 rows"}, {"saved_step": 5}, {"step": 6}]
)
def test_whatever_moves_is_a_sign_of_life(change: dict[str, Any]) -> None:
    silence, progress = Silence(), some_progress(step=5)
    seconds(silence, 1000, progress)
    assert seconds(silence, 1100, progress.model_copy(update=change)) == 0


def test_a_launcher_that_does_not_answer_is_not_silent() -> None:
    silence, progress = Silence(), some_progress(step=5)
    assert seconds(silence, 1000, progress, heard_at=998) == 0
    assert seconds(silence, 1200, progress, heard_at=1003) == 3
    assert Silence().seconds("uid", seen(1, RUNNING), None, heard_at=0, now=1000) == 0


def test_a_process_that_has_just_begun_knows_of_no_silence() -> None:
    before, progress = Silence(), some_progress(step=5)
    seconds(before, 1000, progress)
    assert seconds(before, 5000, progress) == 4000
    assert seconds(Silence(), 5000, progress) == 0


def test_it_begins_when_all_nodes_run_and_anew_with_every_attempt() -> None:
    silence, progress = Silence(), some_progress(step=0)
    half = seen(1, RUNNING, PENDING)
    assert seconds(silence, 1000, progress, attempt=half) == 0
    assert seconds(silence, 1100, progress, attempt=half) == 0
    assert seconds(silence, 1200, progress, attempt=seen(1, RUNNING, RUNNING)) == 0
    assert seconds(silence, 1210, progress, attempt=seen(1, RUNNING, RUNNING)) == 10
    assert seconds(silence, 1220, progress, attempt=seen(2, RUNNING, RUNNING)) == 0


def test_jobs_that_are_gone_are_forgotten() -> None:
    silence, progress = Silence(), some_progress(step=5)
    seconds(silence, 1000, progress)
    silence.keep_only({"uid"})
    assert seconds(silence, 1010, progress) == 10
    silence.keep_only(set())
    assert seconds(silence, 1020, progress) == 0
