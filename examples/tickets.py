"""Support tickets for the demo, made up from a seed: `python -m examples.tickets FILE [--rows 90] [--seed 7]`.

One JSON object a line, with a `messages` list of a user and an assistant turn. Customers word their tickets in many
ways; every answer has one form, so that anyone sees at a glance whether a model has learnt it. Nothing of the form
can be guessed from the question alone, and the ticket number must be copied from it.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

OBJECTS = [
    "kettle",
    "toaster",
    "blender",
    "coffee machine",
    "washing machine",
    "dishwasher",
    "vacuum cleaner",
    "fan",
    "heater",
    "iron",
    "rice cooker",
    "microwave",
    "fridge",
    "oven",
    "hair dryer",
    "air purifier",
    "humidifier",
    "juicer",
    "bread maker",
    "mixer",
]

# What is wrong, and what to do about it.
PROBLEMS = {
    "does not turn on": ["Check the wall socket.", "Press the power button.", "Wait for the green light."],
    "makes a loud noise": ["Put it on a flat surface.", "Tighten all screws.", "Listen once more."],
    "gets too hot": ["Let it cool down.", "Clean the air vents.", "Move it away from the wall."],
    "smells of burning": ["Unplug it.", "Open a window.", "Do not use it again."],
    "switches itself off": ["Reset the timer.", "Change the filter.", "Run it for an hour."],
    "shows an error code": ["Write the code down.", "Restart it.", "Send us the code."],
    "arrived with a crack": ["Take a photo of the crack.", "Pack it up again.", "We bring a new one."],
    "came without its cable": ["Look inside the box.", "Tell us your address.", "We mail you a cable."],
}

_WORDINGS = [
    "My {object} {problem}. My ticket is {number}.",
    "Ticket {number}: the {object} {problem}. Any advice?",
    "Hi, our new {object} {problem}. Ticket {number}.",
    "Please help, the {object} {problem} (ticket {number}).",
    "Since today my {object} {problem}. Ticket number {number}.",
    "About ticket {number}: this {object} {problem}.",
]

# Asked by the demo before and after training; its pair of object and problem is never generated.
_UNSEEN = ("coffee machine", "makes a loud noise")
UNSEEN_QUESTION = "Hello! Ticket 4821 here. Our coffee machine makes a loud noise, what should we do?"


def tickets(rows: int, seed: int) -> list[dict[str, Any]]:
    """Chats about `rows` different pairs of object and problem. Raises ValueError where there aren't that many."""
    pairs = [(thing, problem) for thing in OBJECTS for problem in PROBLEMS if (thing, problem) != _UNSEEN]
    if not 1 <= rows <= len(pairs):
        raise ValueError(f"rows: {rows} is not between 1 and {len(pairs)}, the number of different tickets")
    draw = random.Random(seed)
    numbers = draw.sample(range(1000, 10_000), rows)
    return [
        _chat(thing, problem, number=number, wording=draw.choice(_WORDINGS))
        for (thing, problem), number in zip(draw.sample(pairs, rows), numbers, strict=True)
    ]


def _chat(thing: str, problem: str, *, number: int, wording: str) -> dict[str, Any]:
    steps = [f"{index}. {step}" for index, step in enumerate(PROBLEMS[problem], start=1)]
    answer = ["Thank you for writing!", f"Ticket: {number}", f"Problem: {thing} {problem}", *steps, "Nora, Support"]
    return {
        "messages": [
            {"role": "user", "content": wording.format(object=thing, problem=problem, number=number)},
            {"role": "assistant", "content": "\n".join(answer)},
        ]
    }


def write(file: Path, *, rows: int = 90, seed: int = 7) -> Path:
    """Writes the tickets as JSONL and returns `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in tickets(rows, seed)))
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes made-up support tickets as JSONL chats.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=90)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    try:
        write(arguments.file, rows=arguments.rows, seed=arguments.seed)
    except ValueError as error:
        parser.error(str(error))
    print(f"{arguments.rows} tickets in {arguments.file}")
