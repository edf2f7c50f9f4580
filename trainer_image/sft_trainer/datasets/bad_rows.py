"""Rows that can't be used: counted, told, and held against the budget.

Made by `build` from what was just read and by `open_tokens` from what a cache remembers; `prepare` adds them up over
all datasets, since a job has one budget.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sft_trainer.datasets.rows import BadRow
from sftjob.failure import JobFailure, Reason
from sftjob.receipt import MOST_TOLD


@dataclass(frozen=True)
class BadRows:
    number: int = 0
    told: tuple[str, ...] = ()
    """The first of them: `<file>:<line>: <field>: <what>; <remedy>`."""

    def __add__(self, other: "BadRows") -> "BadRows":
        return BadRows(self.number + other.number, (self.told + other.told)[:MOST_TOLD])

    def check(self, budget: int, *, is_all: bool = True) -> None:
        """Raises JobFailure where they are more than the budget. `is_all`: nobody stopped counting before the end."""
        if self.number <= budget:
            return
        lines = list(self.told)
        if self.number > len(lines) or budget:
            # First, because where room is short a message loses its end.
            lines.insert(
                0,
                f"{'' if is_all else 'more than '}{self.number:,} bad rows, where spec.data.badLineBudget lets "
                f"{budget:,} be skipped; correct them, or raise it. The first {len(lines)}:",
            )
        raise JobFailure(Reason.INVALID_DATA, "\n".join(lines))


NO_BAD_ROWS = BadRows()


def bad_rows_of(path: Path, number: int, told: Iterable[BadRow]) -> BadRows:
    """Of the dataset with this path."""
    return BadRows(number, tuple(row.told(path) for row in told)[:MOST_TOLD])
