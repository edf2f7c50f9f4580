"""What `sft data inspect` asks the trainer, as a process of its own, and what that answers."""

from sftjob.base import Record
from sftjob.options import Overlong, RowFormat
from sftjob.receipt import DataReceipt


class InspectionTask(Record):
    file: str
    model: str
    """A folder with a tokenizer."""
    format: RowFormat = "auto"
    chat_template: str | None = None
    max_length: int
    overlong: Overlong
    samples: int
    """How many to show."""


class Piece(Record):
    """A run of tokens that are all trained, or all not."""

    text: str
    is_trained: bool


def marked(pieces: list[Piece], begin: str = "⟦", end: str = "⟧") -> str:
    """The text of a sample, with marks around what is trained."""
    return "".join(f"{begin}{piece.text}{end}" if piece.is_trained else piece.text for piece in pieces)


class Inspection(Record):
    format: RowFormat
    """That of the rows, by name or as found."""
    receipt: DataReceipt
    samples: list[list[Piece]]
    """The first of the file."""
