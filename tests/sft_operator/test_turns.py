from sft_operator.kubernetes.turns import Turns
from sft_operator.lifecycle.backend import JobKey


def keys(*numbers: int) -> list[JobKey]:
    return [JobKey("default", f"job-{number}") for number in numbers]


def test_few_that_wait_are_all_looked_at_each_time() -> None:
    turns = Turns(at_once=3)
    assert [sorted(turns.next(keys(1, 2, 3))) for _ in range(2)] == [keys(1, 2, 3)] * 2


def test_many_take_turns_and_none_waits_longer_for_those_that_come_later() -> None:
    turns = Turns(at_once=2)
    looked_at = [
        turns.next(keys(1, 2, 3, 4, 5)),
        turns.next(keys(1, 2, 3, 4, 5, 6, 7)),
        turns.next(keys(1, 2, 5, 6, 7)),
    ]
    assert looked_at[0] == keys(1, 2)
    assert looked_at[1] == keys(3, 4)
    assert looked_at[2] == keys(5, 1)


def test_who_waits_no_more_is_forgotten() -> None:
    turns = Turns(at_once=1)
    assert turns.next(keys(1)) == keys(1)
    turns.next([])
    assert turns.next(keys(2, 1)) == keys(2)
