"""`sft data inspect`: what a file becomes for a model, and three of its samples with what is trained of them."""

import subprocess
import sys
import tempfile

from rich.console import Console
from rich.text import Text

from sft_cli.refusal import Refusal
from sftjob.inspection import Inspection, InspectionTask, Piece, marked


def inspect_data(task: InspectionTask, console: Console) -> None:
    """Raises Refusal with the faults of the data."""
    found = _inspection(task, console)
    for index, line in enumerate(found.receipt.in_words()):
        _say(console, Text(line if index else f"{found.format}: {line}"))
    colours = "in green" if console.color_system else "between ⟦ and ⟧"
    for number, pieces in enumerate(found.samples, start=1):
        _say(console, Text(f"\nsample {number}; trained is what stands {colours}", style="bold"))
        _say(console, _shown(pieces, has_colours=console.color_system is not None))


def _inspection(task: InspectionTask, console: Console) -> Inspection:
    """By the trainer; what it is at moves on a terminal meanwhile."""
    # -P: a user's `tokenize.py` in the current folder must not replace the standard library's.
    command = [sys.executable, "-P", "-m", "sft_trainer.inspect_data", task.to_json()]
    line = ""
    with (
        console.status("starting the trainer") as status,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            status.update(Text(line.strip(), overflow="ellipsis", no_wrap=True))
        if process.wait():
            errors.seek(0)
            raise Refusal(errors.read().rstrip(), code=process.returncode)
    return Inspection.from_json(line)


def _say(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _shown(pieces: list[Piece], *, has_colours: bool) -> Text:
    if not has_colours:
        return Text(marked(pieces))
    return Text.assemble(*((piece.text, "bold green" if piece.is_trained else "") for piece in pieces))
