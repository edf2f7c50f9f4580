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
        folder = names.attempt_folder(storage, attempt)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / names.METRICS).open("a", buffering=1)

    def write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: a reader of another language would stop at the line."""
    return value if math.isfinite(value) else None
