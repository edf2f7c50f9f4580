"""One JSON line a step, in the attempt's folder: an attempt that was superseded can't touch a later one's lines."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def last_step_before(storage: Path, attempt: int) -> int:
    """The highest step that an earlier attempt has written down; 0 where none has any."""
    steps = [0]
    for number in range(1, attempt):
        file = names.metrics(storage, number)
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        # The last one may be torn.
        steps += [json.loads(line)["step"] for line in lines[-2:] if line.endswith("\n")]
    return max(steps)


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: a reader of another language would stop at the line."""
    return value if math.isfinite(value) else None
