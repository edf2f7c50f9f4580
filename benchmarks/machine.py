"""On what a benchmark ran. Called before it begins, so that the load is that of others."""

import os
import platform
from pathlib import Path
from typing import Any

from sft_trainer.launcher.resources import available_cpus


def machine_now() -> dict[str, Any]:
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in processors if line.startswith("model name")), "unknown")
    return {
        "processor": model,
        "cpus": available_cpus(),
        "memoryGiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "loadBefore": [round(load, 2) for load in os.getloadavg()],
    }
