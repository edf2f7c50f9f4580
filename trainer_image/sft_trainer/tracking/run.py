"""What a tracker is told of the run whose curves it draws. Made by the loop, on rank 0."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sftjob import names

EVALUATION_LOSS = "eval/loss"
"""The tag; those of a step's own numbers begin with `train/`."""
PROJECT = "sftjob"
"""Where the library's own variable names no other."""


class ToldSteps(NamedTuple):
    """The last one whose training, and the last one after which an evaluation, was told; 0 for none."""

    trained: int = 0
    evaluated: int = 0


@dataclass(frozen=True)
class TrackedRun:
    id: str
    """The same in every attempt."""
    name: str
    """For people."""
    storage: Path
    attempt: int
    resumed_from: int
    """The step that this attempt goes on from; 0 from the start."""
    told_before: ToldSteps
    """By earlier attempts; above `resumed_from` where they were killed after it."""
    config: Mapping[str, Any]
    """The options of the run, as JSON."""

    @property
    def folder(self) -> Path:
        """Of this attempt: a later one has its own."""
        return names.attempt_folder(self.storage, self.attempt)
