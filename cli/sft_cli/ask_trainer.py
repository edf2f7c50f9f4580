"""A question to the trainer, which is a process of its own: the command line doesn't import it."""

import subprocess
import sys
import tempfile

from rich.console import Console
from rich.text import Text

from sft_cli.refusal import Refusal


def ask_trainer(module: str, task: str, *, console: Console) -> str:
    """The last line that `python -m sft_trainer.<module> TASK` says. Those before tell what it is at: on a terminal
    they show meanwhile.

    Raises Refusal with what it says on stderr, and its exit code.
    """
    # -P: a user's `tokenize.py` in the current folder must not replace the standard library's.
    command = [sys.executable, "-P", "-m", f"sft_trainer.{module}", task]
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
    return line
