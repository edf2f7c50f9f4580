"""What `sft run` shows: on a terminal a live line, elsewhere plain lines; and a line for every turn of events.

`show` is called at every pass with the job and the newest report.
"""

import os
from datetime import datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar

from sft_cli.sentences import end_of_attempt, headline, training_figures
from sftjob.failure import NEVER_RETRIED, Reason
from sftjob.job import SFTJob
from sftjob.progress import Progress, Stage
from sftjob.status import Phase, SFTJobStatus

PLAIN_INTERVAL = timedelta(seconds=10)


class Display:
    def __init__(self, console: Console, *, known: SFTJobStatus) -> None:
        """`known`: what need not be told, since it happened before."""
        self._console = console
        self._view = _LiveView(console) if console.is_terminal else _PlainView(console)
        self._ended = {record.number for record in known.attempts.history}
        self._resumed = known.progress.attempt if known.progress and known.progress.resumed_from is not None else 0
        self._is_detached = False

    def __enter__(self) -> "Display":
        self._view.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self._view.close()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def detach(self) -> None:
        """The terminal is gone: what is still to be done is done in silence."""
        if self._is_detached:
            return
        self._is_detached = True
        self._view.close()
        self._console.file = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open until the process ends

    def show(self, job: SFTJob, progress: Progress | None, *, now: datetime) -> None:
        status = job.status
        if progress is not None and progress.attempt != status.attempts.current:
            progress = None
        for record in reversed(status.attempts.history):
            if record.number not in self._ended:
                self._ended.add(record.number)
                # Success and what is never retried are told by the job's result.
                if record.reason is not Reason.SUCCEEDED and record.reason not in NEVER_RETRIED:
                    self.say(end_of_attempt(record))
        if progress is not None and progress.resumed_from is not None and self._resumed != progress.attempt:
            self._resumed = progress.attempt
            for skipped in progress.skipped_checkpoints:
                self.say(f"skipped a checkpoint that does not verify: {skipped}")
            self.say(f"attempt {progress.attempt} resumes at step {progress.resumed_from + 1}")
        self._view.update(job, progress, now)


class _PlainView:
    """A line for each new stage, and one every ten seconds while numbers move."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._key: tuple[object, ...] = ()
        self._line = ""
        self._printed_at: datetime | None = None

    def open(self) -> None: ...

    def close(self) -> None: ...

    def update(self, job: SFTJob, progress: Progress | None, now: datetime) -> None:
        if job.status.phase.is_final or job.status.phase is Phase.SUSPENDED:
            return
        key = (job.status.phase is Phase.SUSPENDING, job.status.attempts.current, progress and progress.stage)
        line = headline(job, progress, now)
        if progress is not None and progress.step:
            line += f"; {training_figures(progress)}"
        is_due = self._printed_at is None or now - self._printed_at >= PLAIN_INTERVAL
        if key != self._key or (is_due and line != self._line):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._key, self._line, self._printed_at = key, line, now


class _LiveView:
    """One line that moves: a spinner and the stage, and during training a bar."""

    def __init__(self, console: Console) -> None:
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("about to start", total=None, figures="")

    def open(self) -> None:
        self._bar.start()

    def close(self) -> None:
        self._bar.stop()

    def update(self, job: SFTJob, progress: Progress | None, now: datetime) -> None:
        has_steps = progress is not None and (progress.stage is Stage.TRAINING or progress.step > 0)
        self._bar.update(
            self._task,
            description=headline(job, progress, now),
            total=progress.total_steps if progress is not None and has_steps else None,
            completed=progress.step if progress is not None else 0,
            figures=training_figures(progress) if progress is not None and has_steps else "",
        )
