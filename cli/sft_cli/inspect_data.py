"""`sft data inspect`: what a file becomes for a model, and three of its samples with what is trained of them.

`sft run` shows the samples of a run in the same way.
"""

from rich.console import Console
from rich.text import Text

from sft_cli.ask_trainer import ask_trainer
from sftjob.inspection import Inspection, InspectionTask, Piece, marked


def inspect_data(task: InspectionTask, console: Console) -> None:
    """Raises Refusal with the faults of the data."""
    found = Inspection.from_json(ask_trainer("inspect_data", task.to_json(), console=console))
    for index, line in enumerate(found.receipt.in_words()):
        _say(console, Text(line if index else f"{found.format}: {line}"))
    show_samples(found.samples, console)


def show_samples(samples: list[list[Piece]], console: Console) -> None:
    colours = "in green" if console.color_system else "between ⟦ and ⟧"
    for number, pieces in enumerate(samples, start=1):
        _say(console, Text(f"\nsample {number}; trained is what stands {colours}", style="bold"))
        _say(console, _shown(pieces, has_colours=console.color_system is not None))


def _say(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _shown(pieces: list[Piece], *, has_colours: bool) -> Text:
    if not has_colours:
        return Text(marked(pieces))
    return Text.assemble(*((piece.text, "bold green" if piece.is_trained else "") for piece in pieces))
