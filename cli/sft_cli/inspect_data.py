"""`sft data inspect`: what a file becomes for a model, and three of its samples with what is trained of them."""

import subprocess
import sys

from rich.console import Console
from rich.text import Text

from sft_cli.refusal import Refusal
from sft_cli.sentences import data_receipt
from sftjob.inspection import Inspection, InspectionTask, Piece


def inspect_data(task: InspectionTask, console: Console) -> None:
    """Raises Refusal with the faults of the data."""
    # -P: a user's `tokenize.py` in the current folder must not replace the standard library's.
    command = [sys.executable, "-P", "-m", "sft_trainer.inspect_data", task.to_json()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refusal(done.stderr.rstrip(), code=done.returncode)
    found = Inspection.from_json(done.stdout)
    _say(console, Text(f"{found.format}: {data_receipt(found.receipt)}"))
    colours = "in green" if console.color_system else "between ⟦ and ⟧"
    for number, pieces in enumerate(found.samples, start=1):
        _say(console, Text(f"\nsample {number}; trained is what stands {colours}", style="bold"))
        _say(console, _shown(pieces, has_colours=console.color_system is not None))


def _say(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _shown(pieces: list[Piece], *, has_colours: bool) -> Text:
    shown = Text()
    for piece in pieces:
        text = piece.text if has_colours or not piece.is_trained else f"⟦{piece.text}⟧"
        shown.append(text, style="bold green" if piece.is_trained else "")
    return shown
