"""One JSON line a step, in the attempt's folder: an attempt that was superseded can't touch a later one's lines."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_trainer.tracking.run import ToldSteps
from sftjob import names

_EVALUATED = '"eval_loss"'
"""In the line of an evaluation alone."""


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
        # The last one may be torn. Only two are parsed: a run has as many as steps.
        whole = [line for line in lines[::-1] if line.endswith("\n")]
        for steps, is_evaluation in ((trained, False), (evaluated, True)):
            last = next((line for line in whole if (_EVALUATED in line) is is_evaluation), None)
            steps += [json.loads(last)["step"]] if last else []
    return ToldSteps(max(trained), max(evaluated))


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: a reader of another language would stop at the line."""
    return value if math.isfinite(value) else None
