"""How long a section may be silent: by what was seen of it, in made-up marks and seconds."""

import pytest

from sft_trainer.launcher.sections import RankTimes
from sft_trainer.marks import Mark
from sftjob.progress import Stage

HOUR = 3600


def a_mark(stage: Stage = Stage.TRAINING, *, step: int = 0, place: int = 0, signs: int = 0) -> Mark:
    return Mark(rank=0, pid=7, thread=1, stage=stage, step=step, place=place, signs=signs)


class Rank:
    """Sees a mark for some seconds, by looks two seconds apart, then another one."""

    def __init__(self, mark: Mark, *, patience: int = 1) -> None:
        self.times = RankTimes(mark, moved_bytes=0, patience=patience)
        self.moved_bytes = 0

    def stays(self, seconds: int) -> "Rank":
        for _ in range(seconds // 2):
            self.times.see(self.times.mark, moved_bytes=self.moved_bytes, gap_seconds=2)
        return self

    def goes_to(self, mark: Mark) -> "Rank":
        self.times.see(mark, moved_bytes=self.moved_bytes, gap_seconds=0)
        return self

    def trains(self, *seconds_of_steps: int, first: int = 1) -> "Rank":
        """From the mark of the step before on."""
        for step, seconds in enumerate(seconds_of_steps, first):
            self.stays(seconds).goes_to(a_mark(step=step, place=step))
        return self

    @property
    def limit(self) -> float | None:
        return self.times.limit_seconds


def test_the_first_steps_which_compile_have_an_hour_and_say_nothing_about_later_ones() -> None:
    rank = Rank(a_mark())
    assert rank.limit == HOUR
    assert rank.trains(900, 600).limit == HOUR
    assert rank.trains(4, first=3).limit == 480


def test_a_run_whose_every_step_is_slow_is_never_taken_for_one_that_hangs() -> None:
    rank = Rank(a_mark())
    for step in range(1, 7):
        rank.stays(600)
        assert rank.times.silent_share < 1
        rank.goes_to(a_mark(step=step - 1, place=step * 2)).goes_to(a_mark(step=step, place=step * 2 + 1))
    assert rank.limit == 6000


def test_a_step_may_take_ten_times_the_longest_so_far() -> None:
    rank = Rank(a_mark()).trains(900, 900, 9)
    assert rank.trains(40, first=4).limit == 480
    assert rank.trains(60, 2, first=5).limit == 600


def test_an_attempt_that_resumes_warms_up_anew() -> None:
    rank = Rank(a_mark(Stage.LOADING_CHECKPOINT)).goes_to(a_mark(step=400, place=1))
    assert rank.trains(900, 900, first=401).limit == HOUR
    assert rank.trains(2, first=403).limit == 480


def test_marks_within_a_step_are_signs_of_life() -> None:
    rank = Rank(a_mark()).trains(2, 2, 2)
    for place in range(4, 10):
        rank.stays(100).goes_to(a_mark(step=3, place=place))
        assert rank.times.silent_seconds == 0
    assert rank.limit == 1000
    assert rank.stays(50).times.silent_seconds == 50


def test_a_save_has_an_hour_the_first_time_and_then_ten_times_the_longest_or_half_an_hour() -> None:
    rank = Rank(a_mark(Stage.SAVING))
    assert rank.limit == HOUR
    rank.stays(20).goes_to(a_mark()).goes_to(a_mark(Stage.SAVING))
    assert rank.limit == 1800
    rank.stays(300).goes_to(a_mark()).goes_to(a_mark(Stage.SAVING))
    assert rank.limit == 3000


@pytest.mark.parametrize("stage", [Stage.STARTING, Stage.LOADING_MODEL, Stage.EVALUATING, Stage.EXPORTING])
def test_whatever_was_never_finished_has_an_hour(stage: Stage) -> None:
    assert Rank(a_mark(stage)).stays(100).limit == HOUR


def test_bytes_that_move_are_a_sign_of_life_but_not_of_a_step() -> None:
    rank = Rank(a_mark(Stage.SAVING)).stays(100)
    rank.moved_bytes = 4096
    assert rank.stays(2).times.silent_seconds == 0
    assert rank.stays(60).times.silent_seconds == 60
    rank = Rank(a_mark()).stays(100)
    rank.moved_bytes = 4096
    assert rank.stays(2).times.silent_seconds == 102


def test_a_sign_of_one_rank_alone_counts() -> None:
    rank = Rank(a_mark(Stage.PREPARING_DATA)).stays(3000).goes_to(a_mark(Stage.PREPARING_DATA, signs=1))
    assert rank.times.silent_seconds == 0


def test_a_launcher_that_stood_still_itself_has_seen_no_silence() -> None:
    rank = Rank(a_mark())
    rank.times.see(a_mark(), moved_bytes=0, gap_seconds=7200)
    assert rank.times.silent_seconds == 2


def test_a_script_has_no_limit_until_a_trainer_in_it_tells_where_it_is() -> None:
    rank = Rank(a_mark(Stage.RUNNING_SCRIPT))
    assert rank.limit is None
    assert rank.goes_to(a_mark(Stage.LOADING_MODEL)).limit == HOUR
    assert rank.goes_to(a_mark(Stage.RUNNING_SCRIPT)).limit is None


def test_each_hang_before_doubles_every_limit() -> None:
    assert Rank(a_mark(), patience=4).limit == 4 * HOUR
    assert Rank(a_mark(), patience=4).trains(2, 2, 2).limit == 4 * 480
