"""The page of reasons tells all that a status can give, and what a retry costs."""

import re

from sftjob.failure import Obstacle, Reason, Verdict
from sftjob.reasons import page


def test_every_reason_has_one_line_with_a_meaning_and_a_remedy() -> None:
    rows = [re.split(r" \| ", line.strip("| \n")) for line in page().splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == [f"`{name}`" for names in (Reason, Verdict, Obstacle) for name in names]
    assert [row for row in rows if len(row) not in (3, 5) or not all(cell.strip() for cell in row[-2:])] == []


def test_no_name_stands_for_two_things() -> None:
    names = [name.value for names in (Reason, Verdict, Obstacle) for name in names]
    assert len(set(names)) == len(names)


def test_the_page_says_what_another_attempt_costs() -> None:
    said = page()
    assert "| `NodeLost` | 70 | `disruptionRetries` |" in said
    assert "| `Hang` | 70 | `retries` |" in said
    assert "| `InvalidData` | 65 | no other follows |" in said
    assert "| `StorageFull` | 73 | `retries` |" in said
