"""What the ranks may use of this machine: threads from the cgroup's quota, an allocator that keeps its memory, and what
earlier attempts have compiled.
"""

import os
from pathlib import Path

from sftjob import names

_CGROUP = Path("/sys/fs/cgroup")
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"

# glibc gives freed blocks of this size back to the kernel at once by default, and every step's activations are
# faulted in again: keeping them made a training step 1.3 to 1.6 times as fast on a CPU.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


def available_cpus(cgroup: Path = _CGROUP) -> float:
    """CPUs by the cgroup's quota (v2, then v1), else by this process's affinity."""
    affinity = float(len(os.sched_getaffinity(0)))
    quota = _quota_v2(cgroup / "cpu.max") or _quota_v1(cgroup / "cpu")
    return min(affinity, quota) if quota else affinity


def rank_environment(*, processes_per_node: int, cpus: float) -> dict[str, str]:
    """Of each rank. What the user's environment sets already stands."""
    threads = max(1, int(cpus // processes_per_node))
    return {"OMP_NUM_THREADS": str(threads), **_MALLOC} | {
        name: os.environ[name] for name in ("OMP_NUM_THREADS", *_MALLOC) if name in os.environ
    }


def compiler_environment(storage: Path) -> dict[str, str]:
    """Of each rank, in the same way.

    torch's own place is the temporary folder, which ends with the attempt: the next one would compile anew.
    """
    return {_COMPILED: os.environ.get(_COMPILED, str(names.compiled_layers(storage)))}


def _quota_v2(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
    except FileNotFoundError:
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except FileNotFoundError:
        return None
    return quota / period if quota > 0 else None
