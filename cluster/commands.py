"""Long commands of others, followed line by line."""

import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


class CommandFailed(Exception):
    """The message has the command and its last words."""


def follow(command: Sequence[str], *, what: str, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Yields what it says on both streams. Raises CommandFailed where it fails; `what` is its name in the message."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        said = [*said[-20:], line.rstrip()]
        yield said[-1]
    if process.wait():
        raise CommandFailed(f"{what}: {shlex.join(command)} failed:\n" + "\n".join(said))
