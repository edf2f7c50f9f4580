"""A process that tokenises its share of a dataset's rows: `python -m sft_trainer.datasets.worker`.

In: a `Task` as the first line of standard input, which then stays open. Out, on standard output, one JSON `Report` a
line: rows done so far, at last the part or the failure. Started by `build`. Not multiprocessing: that would run the
user's training script a second time in the worker, and can't bring a JobFailure back.
"""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from sft_trainer.datasets.render import load_tokenizer
from sft_trainer.datasets.rows import Span
from sft_trainer.datasets.tokenize import Part, Reading, TokensOf, by_format, tokenize_range
from sft_trainer.datasets.tokens import SampleTokenizer
from sftjob.base import Record
from sftjob.failure import JobFailure, Reason


class Task(Record):
    spans: list[Span]
    tokenizer_path: str
    chat_template: str | None = None
    reading: Reading
    folder: Path
    part: int


class Report(Record):
    rows: int = 0
    part: Part | None = None
    failure: tuple[Reason, str] | None = None


def tokens_of(task: Task) -> TokensOf:
    """Loads the tokenizer. Raises JobFailure."""
    tokenizer = load_tokenizer(task.tokenizer_path)
    sample_tokenizer = SampleTokenizer(tokenizer, chat_template=task.chat_template, ends=task.reading.ends)
    return by_format(sample_tokenizer, task.reading.row_format, task.reading.columns)


def run_task(task: Task, *, tokens_of: TokensOf, on_rows: Callable[[int], None]) -> Part:
    return tokenize_range(
        task.spans,
        tokens_of=tokens_of,
        reading=task.reading,
        folder=task.folder,
        part=task.part,
        on_rows=on_rows,
    )


def main() -> None:
    line = sys.stdin.buffer.readline()
    if not line:  # the parent died first
        return
    task = Task.from_json(line)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        part = run_task(task, tokens_of=tokens_of(task), on_rows=lambda rows: _report(Report(rows=rows)))
        _report(Report(part=part))
    except JobFailure as failure:
        _report(Report(failure=(failure.reason, failure.message)))


def _leave_with_parent() -> None:
    """Standard input ends when the parent does, however it dies."""
    sys.stdin.buffer.read()
    os._exit(1)


def _report(report: Report) -> None:
    print(report.to_json(), flush=True)


if __name__ == "__main__":
    main()
