"""The tests of `decide` are worth something: each of its decisions, broken, turns one of them red."""

import pytest
from mutants import MUTANTS, Mutant, first_failure

SMALLEST = 3


@pytest.mark.full
def test_the_decisions_as_they_are_turn_no_test_red() -> None:
    assert first_failure(None) is None


@pytest.mark.parametrize(
    "mutant",
    [*MUTANTS[:SMALLEST], *(pytest.param(mutant, marks=pytest.mark.full) for mutant in MUTANTS[SMALLEST:])],
    ids=lambda mutant: mutant.decision,
)
def test_a_broken_decision_is_noticed(mutant: Mutant) -> None:
    assert first_failure(mutant) is not None
