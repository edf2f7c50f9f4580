"""What `sft run` shows: on a terminal a live line, elsewhere plain lines; and a line for every turn of events.

`show` is called at every pass with the job and the newest report.
"""

import os
import sys
from datetime import datetime, timedelta

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from sft_cli.inspect_data import show_samples
from sft_cli.sentences import end_of_attempt, headline
from sftjob.failure import NEVER_RETRIED, Reason
from sftjob.inspection import ShownSamples
from sftjob.job import SFTJob
from sftjob.progress import Progress, Stage
from sftjob.progress_words import DONE, LEFT, progress_line, progress_lines
from sftjob.status import Phase, SFTJobStatus

PLAIN_INTERVAL = timedelta(seconds=10)


class Output(Console):
    """What a run is told on."""

    def on_broken_pipe(self) -> None:
        """Whoever read it has gone, as `head` does: the job goes on, in silence."""
        _silence(self)
        # Python flushes it at the end.
        os.dup2(self.file.fileno(), sys.stdout.fileno())


def _silence(console: Console) -> None:
    console.file = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open until the process ends


class Display:
    def __init__(self, console: Console, *, known: SFTJobStatus) -> None:
        """`known`: what need not be told, since it happened before."""
        self._console = console
        self._view = _LiveView(console) if console.is_terminal else _PlainView(console)
        self._ended = {record.number for record in known.attempts.history}
        self._resumed = known.progress.attempt if known.progress and known.progress.resumed_from is not None else 0
        self._is_detached = False
        self._has_data = False

    def __enter__(self) -> "Display":
        self._view.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self._view.close()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def data(self, prepared: ShownSamples) -> None:
        """What became of it, and samples with what is trained of them; once."""
        if self._has_data:
            return
        self._has_data = True
        first, *others = prepared.receipt.in_words()
        for line in (f"{prepared.receipt.title}: {first}", *others):
            self.say(line)
        show_samples(prepared.samples, self._console)

    def detach(self) -> None:
        """The terminal is gone: what is still to be done is done in silence."""
        if self._is_detached:
            return
        self._is_detached = True
        self._view.close()
        _silence(self._console)

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
            line += f"; {progress_line(progress)}"
        is_due = self._printed_at is None or now - self._printed_at >= PLAIN_INTERVAL
        if key != self._key or (is_due and line != self._line):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._key, self._line, self._printed_at = key, line, now


class _LiveView:
    """A few lines that move: the stage, in training a bar, and below it the figures."""

    def __init__(self, console: Console) -> None:
        self._shown = _Moving()
        self._live = Live(self._shown, console=console, transient=True, refresh_per_second=4)

    def open(self) -> None:
        self._live.start()

    def close(self) -> None:
        self._live.stop()

    def update(self, job: SFTJob, progress: Progress | None, now: datetime) -> None:
        self._shown.headline = headline(job, progress, now)
        has_steps = progress is not None and (progress.stage is Stage.TRAINING or progress.step > 0)
        self._shown.progress = progress if has_steps else None


class _Moving:
    """As wide as the terminal is at the moment, and nothing of it cut in the middle of a figure."""

    def __init__(self) -> None:
        self.headline = "about to start"
        self.progress: Progress | None = None
        self._spinner = Spinner("dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *others = progress_lines(self.headline, self.progress, width=options.max_width)
        self._spinner.text = _line(first)
        yield self._spinner
        for line in others:
            yield _line(line)


def _line(text: str) -> Text:
    line = Text(text, overflow="ellipsis", no_wrap=True)
    line.highlight_regex(f"{DONE}+", "bar.complete")
    line.highlight_regex(f"{LEFT}+", "bar.back")
    return line
