"""The download stage as the launcher runs it, a process of its own, for the tests of hub and bucket."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sft_operator.lifecycle.plan import launch_plan
from sft_trainer.progress import read_progress, write_progress
from sft_trainer.report import Report, read_reports
from sft_trainer.storage import fence
from sft_trainer.task import RankTask
from sftjob.base import utc_now
from sftjob.job import ObjectMeta, SFTJob
from sftjob.plan import LaunchPlan
from sftjob.progress import Progress, Stage
from sftjob.spec import SFTJobSpec


class Node:
    """One node of an attempt, with its scratch folder. A variable that is None is not set."""

    def __init__(self, plan: LaunchPlan, scratch: Path, *, rank: int, **environment: str | None) -> None:
        self.plan = plan
        self.scratch = scratch
        scratch.mkdir(parents=True)
        fence.enter(plan, node_rank=rank, pod_uid=None)
        RankTask(plan=plan).write(scratch)
        write_progress(scratch, Progress(attempt=plan.attempt, stage=Stage.FENCING, reported_at=utc_now()))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "AWS_"))}
        self._environment = inherited | {
            "HF_HOME": str(scratch / "home"),
            "SFTJOB_NODE_RANK": str(rank),
            "SFTJOB_MASTER_ADDRESS": "127.0.0.1",
            "SFTJOB_MASTER_PORT": "1",
            "SFTJOB_SCRATCH": str(scratch),
            "SFTJOB_TERMINATION_MESSAGE": str(scratch / "message"),
            "SFTJOB_SERVE_ADDRESS": "127.0.0.1:0",
        }
        self._environment |= {name: value for name, value in environment.items() if value is not None}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Node":
        command = [sys.executable, "-m", "sft_trainer.child", "download", str(os.getpid()), str(self.scratch)]
        self.process = subprocess.Popen(command, env=self._environment)
        return self

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=300)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def run(self) -> int:
        return self.start().wait()

    @property
    def report(self) -> Report:
        return read_reports(self.scratch)["download"]

    @property
    def progress(self) -> Progress:
        progress = read_progress(self.scratch)
        assert progress is not None
        return progress


@contextlib.contextmanager
def nodes_of(folder: Path, *, model: dict[str, Any], environment: dict[str, str]) -> Iterator[Callable[..., Node]]:
    """Makes nodes of attempts of a job; `model` is its section unless another is given. All are killed at the end."""
    nodes: list[Node] = []

    def make(
        *,
        attempt: int = 1,
        rank: int = 0,
        nodes_: int = 1,
        model: Any = model,
        data: Any = None,
        output: str = f"file://{folder}/tuned",
        **more: str | None,
    ) -> Node:
        spec = {
            "model": model,
            "data": {"datasets": data or [{"name": "chats", "uri": "file:///chats.jsonl"}]},
            "output": [{"uri": output}],
            "compute": {"nodes": nodes_},
        }
        metadata = ObjectMeta(name="job", namespace="default", uid="uid-1")
        job = SFTJob(metadata=metadata, spec=SFTJobSpec.model_validate(spec))
        copy = f"{folder}/copy-{rank}/"
        path_of = lambda uri: uri.removeprefix("file://").replace("s3://", copy)  # noqa: E731
        plan = launch_plan(job, attempt, path_of=path_of)
        nodes.append(Node(plan, folder / f"scratch-{attempt}-{rank}", rank=rank, **environment | more))
        return nodes[-1]

    yield make
    for one in nodes:
        with contextlib.suppress(ProcessLookupError):
            if one.process:
                one.process.kill()


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def downloaded(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
