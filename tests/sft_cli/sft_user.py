"""`sft` as its user calls it in a folder with a job, with a stub in place of the launcher."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from sft_cli.main import app

JOB = """
apiVersion: sftjob.dev/v1alpha1
kind: SFTJob
metadata: {name: tiny}
spec:
  model: {loadFrom: {uri: "pvc://models/base"}}
  data: {datasets: [{name: chats, uri: "pvc://data/chats.jsonl"}]}
  output: [{uri: "pvc://models/tuned"}]
"""


_PYTHONPATH = [path for path in [os.environ.get("PYTHONPATH")] if path]


class Said(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class User:
    """Works in a folder of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.folder = folder
        self.file = folder / "job.yaml"
        self.file.write_text(JOB)
        for claims in (folder, folder / "claims"):
            (claims / "models/base").mkdir(parents=True)
            (claims / "data").mkdir()
            (claims / "data/chats.jsonl").touch()
        self.work_folder = folder / "runs" / "tiny"
        self.faults: dict[str, str] = {}
        self.step_seconds = 0.01
        self.held_after = -1
        """The step after which an attempt trains no further until `let_go`: it can be met at work at any speed."""
        self.started: list[subprocess.Popen[str]] = []

    def sft(self, *arguments: str) -> "Said":
        """Within this process: starting one takes longer than most runs."""
        self._monkeypatch.chdir(self.folder)
        self._monkeypatch.setattr(sys, "argv", ["sft", *arguments])
        for name, value in self._environment().items():
            self._monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            app()
        captured = self._capsys.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    def start(self, *arguments: str, ignores_hang_up: bool = False) -> subprocess.Popen[str]:
        """As a process: to be signalled, or to run beside another one. The tests themselves may run under `nohup`."""
        hang_up = signal.SIG_IGN if ignores_hang_up else signal.SIG_DFL
        program = f"import signal; signal.signal(signal.SIGHUP, {int(hang_up)}); from sft_cli.main import app; app()"
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=self.folder,
            env=os.environ | self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).with_name("stub")), *_PYTHONPATH]),
            "STUB_FAULTS": json.dumps(self.faults),
            "STUB_HELD_AFTER": str(self.held_after),
            "STUB_STEP_SECONDS": str(self.step_seconds),
        }

    def wait_for_step(self, step: int, *, attempt: int = 1) -> None:
        metrics = self.folder / "claims/models/tuned.checkpoints/attempts" / str(attempt) / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not metrics.exists() or metrics.read_text().count("\n") < step:
            assert time.monotonic() < deadline, "it never came so far"
            time.sleep(0.02)

    def let_go(self) -> None:
        (self.folder / "go on").touch()

    def launcher_pid(self, *, attempt: int = 1) -> int:
        return int((self.work_folder / "attempts" / str(attempt) / "node-0" / "pid").read_text())

    def status(self) -> dict[str, object]:
        status: dict[str, object] = json.loads((self.work_folder / "job.json").read_text())["status"]
        return status
