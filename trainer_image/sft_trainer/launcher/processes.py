"""What the kernel knows of a rank's process. Linux."""

import contextlib
from pathlib import Path


def name_this_process(name: str) -> None:
    """As `top` and `ps -o comm` show it, up to 15 characters: forks have their parent's command line."""
    # For people only: where the kernel is another one, it need not work.
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def process_state(pid: int, *, parent: int) -> str | None:
    """R, S, D, T...; None where it is not, or no longer, a living child of this parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0] if int(fields[1]) == parent and fields[0] not in "ZX" else None


def moved_bytes(pid: int) -> int:
    """Read and written by the process since it began, through files of any kind; 0 where it is gone.

    Weights are mapped: what is read of them shows in the bytes that a disk gave, or as faults.
    """
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        major_faults = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    numbers = dict(line.split(": ") for line in lines)
    return sum(int(numbers[name]) for name in ("rchar", "wchar", "read_bytes")) + major_faults


def native_threads(pid: int) -> list[str]:
    """A line a thread: name, state, and where in the kernel it waits."""
    lines = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*"), key=lambda path: int(path.name)):
        try:
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            waits = (task / "wchan").read_text().strip("0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        lines.append(f"{task.name} {name} {rest.split()[0]} {waits}".rstrip())
    return lines
