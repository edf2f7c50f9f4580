"""A run's metrics: one file an attempt in storage in, its steps and evaluations out. For the plot and the last loss."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftjob import names


@dataclass(frozen=True)
class Row:
    """A step."""

    step: int
    attempt: int
    loss: float
    """NaN where it was not finite."""
    lr: float | None = None
    skipped_steps: int = 0
    """Of the run so far."""


@dataclass(frozen=True)
class Evaluation:
    step: int
    loss: float


@dataclass(frozen=True)
class Metrics:
    """In order of steps. What several attempts told of a step, the newest one said: it went on from there."""

    rows: list[Row]
    evaluations: list[Evaluation]

    @property
    def best(self) -> Evaluation | None:
        """The lowest; the earliest of equals."""
        return min(self.evaluations, key=lambda one: one.loss, default=None)


def read_metrics(storage: Path) -> Metrics:
    """Raises ValueError for a line that is broken; an attempt's last one may be torn and is left out."""
    rows: dict[int, Row] = {}
    evaluations: dict[int, Evaluation] = {}
    for attempt in _attempts(storage):
        file = names.attempt_folder(storage, attempt) / names.METRICS
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                break
            try:
                fields = json.loads(line)
                if "eval_loss" in fields:
                    evaluations[fields["step"]] = Evaluation(fields["step"], fields["eval_loss"])
                else:
                    rows[fields["step"]] = _row(fields, attempt)
            except (json.JSONDecodeError, KeyError, TypeError):
                raise ValueError(f"{file}:{number}: not a line of metrics") from None
    return Metrics([rows[step] for step in sorted(rows)], [evaluations[step] for step in sorted(evaluations)])


def _row(fields: dict[str, Any], attempt: int) -> Row:
    loss = math.nan if fields["loss"] is None else fields["loss"]
    # A script of another library's may have told its loss alone.
    return Row(fields["step"], attempt, loss, fields.get("lr"), fields.get("skipped_steps", 0))


def _attempts(storage: Path) -> list[int]:
    folder = storage / names.ATTEMPTS
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
