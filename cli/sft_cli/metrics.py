"""A run's metrics: one file an attempt in storage in, one row a step out. For the loss curve and last loss."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from sftjob import names


@dataclass(frozen=True)
class Row:
    step: int
    attempt: int
    loss: float


def read_metrics(storage: Path) -> list[Row]:
    """In order of steps. Where several attempts trained a step, the newest one's counts: it went on from there.

    Raises ValueError for a line that is broken; an attempt's last one may be torn and is left out.
    """
    by_step = {}
    for attempt in _attempts(storage):
        file = names.attempt_folder(storage, attempt) / names.METRICS
        for row in _read_file(file, attempt) if file.exists() else []:
            by_step[row.step] = row
    return [by_step[step] for step in sorted(by_step)]


def _attempts(storage: Path) -> list[int]:
    folder = storage / names.ATTEMPTS
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def _read_file(file: Path, attempt: int) -> list[Row]:
    rows = []
    lines = file.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            fields = json.loads(line)
            if "eval_loss" in fields:
                continue
            # Of a step that was skipped for a gradient that is not finite, the loss may not be either.
            loss = math.nan if fields["loss"] is None else fields["loss"]
            rows.append(Row(fields["step"], attempt, loss))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{file}:{number}: not a line of metrics") from None
    return rows
