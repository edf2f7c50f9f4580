"""What `sft data inspect` asks the trainer, as a process of its own, and what that answers; and samples of a run."""

from typing import Self

from pydantic import model_validator

from sftjob.base import Record
from sftjob.forms import Column, RowField
from sftjob.names import HUB
from sftjob.options import BadLineBudget, Overlong, RowFormat
from sftjob.receipt import DataReceipt
from sftjob.sources import DatasetSpec, UriSource, refuse_columns_of_no_format


class InspectionTask(Record):
    file: str
    """A path, or a dataset of a hub."""
    revision: str | None = None
    """Of a hub's dataset, as the next two."""
    config: str | None = None
    split: str | None = None
    model: str
    """A folder with a tokenizer, or a hub's repository."""
    format: RowFormat = "auto"
    columns: dict[RowField, Column] = {}
    bad_line_budget: BadLineBudget = 0
    chat_template: str | None = None
    max_length: int
    overlong: Overlong
    samples: int
    """How many to show."""

    @model_validator(mode="after")
    def _columns_are_of_its_format(self) -> Self:
        refuse_columns_of_no_format(self.columns, row_format=self.format)
        return self

    @property
    def hub_dataset(self) -> DatasetSpec | None:
        """None for a path. Raises pydantic.ValidationError, as `hub_model` does."""
        if not self.file.startswith(HUB) and (self.revision, self.config, self.split) == (None, None, None):
            return None
        return DatasetSpec(
            name="inspected", uri=self.file, revision=self.revision, config=self.config, split=self.split
        )

    @property
    def hub_model(self) -> UriSource | None:
        return UriSource(uri=self.model) if self.model.startswith(HUB) else None


class Piece(Record):
    """A run of tokens that are all trained, or all not."""

    text: str
    is_trained: bool


def marked(pieces: list[Piece], begin: str = "⟦", end: str = "⟧") -> str:
    """The text of a sample, with marks around what is trained."""
    return "".join(f"{begin}{piece.text}{end}" if piece.is_trained else piece.text for piece in pieces)


class ShownSamples(Record):
    """Of a run that begins."""

    receipt: DataReceipt
    samples: list[list[Piece]]
    """A few, with the middle of what is long left out."""


class Inspection(Record):
    format: RowFormat
    """That of the rows, by name or as found."""
    receipt: DataReceipt
    samples: list[list[Piece]]
    """The first of the file."""
