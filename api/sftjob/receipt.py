"""What became of the data: the trainer counts it, the operator writes it into the status, every display tells it."""

from typing import Self

from sftjob.base import Record, Whole
from sftjob.words import counted

MOST_TOLD = 20
"""Bad rows that are told one by one."""
_MOST_CHARACTERS = 200


class Counts(Record):
    """Of samples and rows: of one dataset, or of all."""

    samples: Whole
    """Trained on in each pass, as often as `sampleRatio` draws them."""
    tokens: Whole
    """Of these samples."""
    trained_tokens: Whole
    """Those of them that count in the loss."""
    truncated: Whole = 0
    """Samples, trained on or evaluated, that were cut to a pack's length."""
    dropped: Whole = 0
    """Rows that are left out for their length."""
    bad_lines: Whole = 0
    """Rows that are left out because they can't be used; of all datasets at most `badLineBudget`."""
    thoughtless: Whole = 0
    """Answers that are trained without their thoughts, which the chat template leaves out."""
    held_out: Whole = 0
    """Samples that are evaluated and never trained on."""


class DatasetReceipt(Counts):
    """Of one dataset."""

    name: str
    format: str
    """That of its rows, by name or as found."""


class DataReceipt(Counts):
    """What became of the data: every row is counted once."""

    cut_by_packs: Whole = 0
    """Of `samples`, those in several pieces, by level `hard` or `overlong: split`: a rest begins without context."""
    first_bad_lines: list[str] = []
    """Bounded: `<file>:<line>: <field>: <what>; <remedy>`."""
    packs: Whole
    """Rows that the samples fill."""
    datasets: list[DatasetReceipt] = []
    """The same by dataset, those of the evaluation last."""

    def shortened(self) -> Self:
        """Without its lists, where room is short."""
        return self.model_copy(update={"first_bad_lines": [], "datasets": []})

    @property
    def title(self) -> str:
        """For its words, which tell the formats of several datasets: that of the only one."""
        return f"data ({self.datasets[0].format})" if len(self.datasets) == 1 else "data"

    def in_words(self) -> list[str]:
        """The sum; a line for each dataset where there are several; the bad rows."""
        cut = f", cutting {counted(self.cut_by_packs, 'sample')}" if self.cut_by_packs else ""
        lines = [f"{_counts(self)}; {counted(self.packs, 'pack')}{cut}"]
        if len(self.datasets) > 1:
            lines += [f"  {each.name} ({each.format}): {_counts(each)}" for each in self.datasets]
        lines += [f"  skipped {row}" for row in self.first_bad_lines]
        if self.first_bad_lines and self.bad_lines > len(self.first_bad_lines):
            lines.append(f"  and {counted(self.bad_lines - len(self.first_bad_lines), 'more row')}")
        return lines


def bounded(row: str) -> str:
    """A bad row's words, as long as a status can hold them."""
    return row if len(row) <= _MOST_CHARACTERS else row[: _MOST_CHARACTERS - 1] + "…"


def _counts(data: Counts) -> str:
    return (
        f"{counted(data.samples, 'sample')}, {counted(data.tokens, 'token')}, {data.trained_tokens:,} of them trained; "
        + (f"{counted(data.held_out, 'sample')} held out; " if data.held_out else "")
        + f"{data.truncated:,} truncated, {data.dropped:,} dropped"
        + (
            f", {counted(data.thoughtless, 'answer')} without the thoughts, which the template drops"
            if data.thoughtless
            else ""
        )
        + (f", {counted(data.bad_lines, 'bad row')} skipped" if data.bad_lines else "")
    )
