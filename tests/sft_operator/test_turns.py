from sft_operator.kubernetes.turns import Turns, Waiting
from sft_operator.lifecycle.backend import JobKey


def jobs(*numbers: int, phase: str = "Starting") -> list[Waiting]:
    return [(JobKey("default", f"job-{number}"), phase) for number in numbers]


def test_few_that_wait_are_all_looked_at_each_time() -> None:
    turns = Turns(at_once=3, first_after=9)
    assert [sorted(turns.next(jobs(1, 2, 3))) for _ in range(2)] == [jobs(1, 2, 3)] * 2


def test_many_take_turns_and_none_waits_longer_for_those_that_come_later() -> None:
    turns = Turns(at_once=2, first_after=9)
    assert turns.next(jobs(1, 2, 3, 4, 5)) == {*jobs(1, 2)}
    assert turns.next(jobs(1, 2, 3, 4, 5, 6, 7)) == {*jobs(3, 4)}
    assert turns.next(jobs(1, 2, 5, 6, 7)) == {*jobs(5, 1)}


def test_a_newcomer_is_looked_at_in_time_however_many_wait() -> None:
    turns = Turns(at_once=1, first_after=2)
    many = jobs(*range(100))
    for _ in range(5):
        turns.next(many)
    came = [*many, *jobs(100)]
    assert [jobs(100)[0] in turns.next(came) for _ in range(3)] == [False, False, True]


def test_one_that_comes_to_another_phase_is_a_newcomer() -> None:
    turns = Turns(at_once=1, first_after=1)
    for _ in range(3):
        turns.next(jobs(*range(9), phase="Queued"))
    let_go = [*jobs(*range(8), phase="Queued"), *jobs(8)]
    assert [jobs(8)[0] in turns.next(let_go) for _ in range(2)] == [False, True]


def test_who_waits_no_more_is_forgotten() -> None:
    turns = Turns(at_once=1, first_after=9)
    assert turns.next(jobs(1)) == {*jobs(1)}
    turns.next([])
    assert turns.next(jobs(2, 1)) == {*jobs(2)}
