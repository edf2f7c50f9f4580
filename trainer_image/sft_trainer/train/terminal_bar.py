"""The bar of a run on a terminal, in place of a line for each step; other lines of the log stand above it.

Called by `RunTeller` on rank 0. The words and the bar are those of `sft run`.
"""

import logging
import sys
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sftjob.progress import Progress
from sftjob.progress_words import headline, progress_lines


class TerminalBar:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = Group()
        before = sys.stderr
        self._live = Live(get_renderable=lambda: self._shown, console=console, refresh_per_second=4)
        self._live.start()
        # `Live` puts what is written to sys.stderr above the bar; the log's handlers have taken the real one before.
        root = logging.getLogger().handlers
        self._handlers = [each for each in root if isinstance(each, logging.StreamHandler) and each.stream is before]
        self._stream = before
        self._redirect(sys.stderr)

    def show(self, progress: Progress) -> None:
        width = self._console.width
        lines = progress_lines(headline(progress), progress if progress.step else None, width=width)
        self._shown = Group(*(Text(line, overflow="ellipsis", no_wrap=True) for line in lines))

    def close(self) -> None:
        """The last figures stay."""
        self._live.stop()
        self._redirect(self._stream)

    def _redirect(self, stream: TextIO) -> None:
        for handler in self._handlers:
            handler.setStream(stream)


def terminal_bar() -> TerminalBar | None:
    """None where stderr is no terminal."""
    console = Console(stderr=True, highlight=False)
    return TerminalBar(console) if console.is_terminal else None
