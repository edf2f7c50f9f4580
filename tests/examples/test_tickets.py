import json
import re
from pathlib import Path

import pytest

from examples.tickets import OBJECTS, PROBLEMS, UNSEEN_QUESTION, tickets, write

FORM = re.compile(
    r"Thank you for writing!\n"
    r"Ticket: (?P<number>\d{4})\n"
    r"Problem: (?P<problem>[a-z ]+)\n"
    r"1\. .+\.\n"
    r"2\. .+\.\n"
    r"3\. .+\.\n"
    r"Nora, Support"
)


def test_the_same_seed_gives_the_same_tickets_and_another_seed_others() -> None:
    assert tickets(90, 7) == tickets(90, 7)
    assert tickets(90, 7) != tickets(90, 8)


def test_a_known_seed_gives_this_ticket_on_every_python() -> None:
    assert tickets(90, 7)[0] == {
        "messages": [
            {"role": "user", "content": "About ticket 6305: this microwave smells of burning."},
            {
                "role": "assistant",
                "content": "Thank you for writing!\nTicket: 6305\nProblem: microwave smells of burning\n"
                "1. Unplug it.\n2. Open a window.\n3. Do not use it again.\n"
                "Nora, Support",
            },
        ]
    }


def test_every_answer_has_the_fixed_form_and_repeats_what_the_question_says() -> None:
    problems = set()
    for row in tickets(90, 7):
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        form = FORM.fullmatch(answer["content"])
        assert form is not None, answer["content"]
        assert form["number"] in question["content"]
        problems.add(form["problem"])
    assert len(problems) == 90


def test_the_unseen_question_and_its_answer_are_never_generated() -> None:
    everything = [turn["content"] for row in tickets(159, 7) for turn in row["messages"]]
    assert UNSEEN_QUESTION not in everything
    assert not [text for text in everything if re.search(r"coffee machine.*makes a loud noise", text)]
    assert "coffee machine makes a loud noise" in UNSEEN_QUESTION


def test_there_are_twenty_objects_and_eight_problems_of_three_steps() -> None:
    assert len(set(OBJECTS)) == 20
    assert [len(steps) for steps in PROBLEMS.values()] == [3] * 8


@pytest.mark.parametrize("rows", [0, 160])
def test_more_rows_than_different_tickets_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=rf"^rows: {rows} is not between 1 and 159"):
        tickets(rows, 7)


def test_the_file_has_one_row_a_line(tmp_path: Path) -> None:
    lines = write(tmp_path / "tickets.jsonl", rows=3, seed=1).read_text().splitlines()
    assert [json.loads(line) for line in lines] == tickets(3, 1)
