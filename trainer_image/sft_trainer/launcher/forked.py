"""Children of torchrun's process that begin with all of their imports done: forks of it.

A rank's imports take seconds of a core and hundreds of MB. Forked, a node does them once for its prepare stage and all
of its ranks, which share that memory. Python's `multiprocessing` forks; torchrun gets a rank where it expects a
`subprocess.Popen`.
"""

import os
import subprocess
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sft_trainer import child
from sft_trainer.death import die_with_parent

_DEVICES = ("/dev/nvidia", "/dev/dxg", "/dev/kfd")

_fork = get_context("fork")


def import_what_children_need() -> None:
    """Computes nothing: a fork would lack the threads of a library that has begun to."""
    # torch's question whether there is a GPU must not open it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import sft_trainer.prepare
    import sft_trainer.rank  # noqa: F401


def opened_devices() -> list[str]:
    """GPUs that this process holds, which no fork of it could use. None is known that an import opens."""
    # The folder's own link is gone when it is read.
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sorted({path for link in links if (path := str(link.readlink())).startswith(_DEVICES)})


def run_forked(stage: str, scratch: Path) -> int:
    """Its exit code, negative for a signal."""
    process = _fork.Process(target=_run_stage, args=(stage, os.getpid(), str(scratch)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


class ForkedRank:
    """Waits from its birth until `begin`: once torchrun has its connections and threads, it is too late to fork."""

    def __init__(self, scratch: Path) -> None:
        self._ours, theirs = _fork.Pipe()
        self._process = _fork.Process(target=_wait_and_run, args=(theirs, os.getpid(), str(scratch)))
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._ours.recv()

    def begin(self, environment: dict[str, str], stderr: str | None) -> "ForkedRank":
        """`stderr` is the file that it writes its standard error to."""
        self._ours.send((environment, stderr))
        return self

    def poll(self) -> int | None:
        """As `Popen.poll`."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """As `Popen.wait`."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("rank", timeout)
        return code


def _wait_and_run(pipe: Any, parent_pid: int, scratch: str) -> None:
    die_with_parent(parent_pid)
    # torchrun ends the whole group of a rank.
    os.setsid()
    pipe.send(None)
    environment, stderr = pipe.recv()
    pipe.close()
    os.environ.update(environment)
    if stderr is not None:
        with Path(stderr).open("ab") as file:
            os.dup2(file.fileno(), 2)
    _run_stage("rank", parent_pid, scratch)


def _run_stage(stage: str, parent_pid: int, scratch: str) -> None:
    raise SystemExit(child.main(stage, str(parent_pid), scratch))
