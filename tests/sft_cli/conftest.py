"""A folder with a job, and `sft` as its user calls it: a process, with a stub in place of the launcher."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

JOB = """
apiVersion: sftjob.dev/v1alpha1
kind: SFTJob
metadata: {name: tiny}
spec:
  model: {loadFrom: {uri: "pvc://models/base"}}
  data: {datasets: [{name: chats, uri: "pvc://data/chats.jsonl"}]}
  output: [{uri: "pvc://models/tuned"}]
"""


class User:
    """Works in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "job.yaml"
        self.file.write_text(JOB)
        self.work_folder = folder / "runs" / "tiny"
        self.faults: dict[str, str] = {}
        self.step_seconds = 0.01
        self.started: list[subprocess.Popen[str]] = []

    def sft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).with_name("stub")),
            "STUB_FAULTS": json.dumps(self.faults),
            "STUB_STEP_SECONDS": str(self.step_seconds),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", "from sft_cli.main import app; app()", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def wait_for_step(self, step: int, *, attempt: int = 1) -> None:
        metrics = self.folder / "claims/models/tuned.checkpoints/attempts" / str(attempt) / "metrics.jsonl"
        deadline = time.monotonic() + 30
        while not metrics.exists() or metrics.read_text().count("\n") < step:
            assert time.monotonic() < deadline, "it never came so far"
            time.sleep(0.02)

    def launcher_pid(self, *, attempt: int = 1) -> int:
        return int((self.work_folder / "attempts" / str(attempt) / "node-0" / "pid").read_text())

    def status(self) -> dict[str, object]:
        status: dict[str, object] = json.loads((self.work_folder / "job.json").read_text())["status"]
        return status


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    user = User(tmp_path)
    yield user
    for process in user.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    for pid in tmp_path.glob("**/node-*/pid"):
        try:
            os.kill(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue
