"""One JSON line a step, in the attempt's folder: an attempt that was superseded can't touch a later one's lines."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_trainer.tracking.run import ToldSteps
from sftjob import names


class MetricsLog:
    """Append only. Complete up to the last finished step, whatever kills the process: the kernel has every line."""

    def __init__(self, storage: Path, attempt: int) -> None:
        path = names.metrics(storage, attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)

    def write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


def last_steps_before(storage: Path, attempt: int) -> ToldSteps:
    """The highest steps that an earlier attempt has written down."""
    trained, evaluated = [0], [0]
    for number in range(1, attempt):
        file = names.metrics(storage, number)
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        # The last one may be torn.
        for line in (json.loads(text) for text in lines if text.endswith("\n")):
            (evaluated if "eval_loss" in line else trained).append(line["step"])
    return ToldSteps(max(trained), max(evaluated))


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: a reader of another language would stop at the line."""
    return value if math.isfinite(value) else None
