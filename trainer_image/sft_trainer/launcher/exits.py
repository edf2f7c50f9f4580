"""What passes between the launcher and its torchrun: the task, and afterwards the exit codes and logs of the ranks."""

from pathlib import Path

from sftjob.base import Record


class TorchrunTask(Record):
    parent_pid: int
    nodes: int
    processes_per_node: int
    node_rank: int
    master_address: str
    master_port: int
    run_id: str
    scratch: str
    shutdown_seconds: int
    """After SIGTERM of this process: until ranks that still save are SIGKILLed."""
    script: list[str] = []
    """Path and arguments of what each rank runs in place of ours."""


class RankExits(Record):
    """Exit codes of the ranks that had failed before torchrun ended the others; negative is a signal."""

    exit_codes: dict[int, int]


def rank_exits_path(scratch: Path) -> Path:
    return scratch / "torchrun.json"


def torchrun_logs(scratch: Path) -> Path:
    return scratch / "torchelastic"


def log_tail(scratch: Path, local_rank: int, *, most_bytes: int = 600) -> str:
    """The end of what a rank of this node wrote to its standard error, or else to its output."""
    for name in ("stderr", "stdout"):
        for path in torchrun_logs(scratch).glob(f"*/attempt_0/{local_rank}/{name}.log"):
            if written := path.read_bytes()[-most_bytes:]:
                return written.decode(errors="replace")
    return ""
