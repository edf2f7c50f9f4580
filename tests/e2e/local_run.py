"""A real `sft run` of a small model on this machine: started, watched, hurt and compared by the tests."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

PATIENCE_SECONDS = 1200
"""For anything that takes seconds on an idle machine."""

FAULTS = os.pathsep.join([str(Path(__file__).parent / "faults"), *filter(None, [os.environ.get("PYTHONPATH")])])
"""A PYTHONPATH that begins with them."""

TOTAL_STEPS = 12
EVERY_STEPS = 2


def job(*, tokenizer: str, data: str, processes: int = 2, **spec: dict[str, Any]) -> dict[str, Any]:
    """A Qwen3 of 3 million parameters from scratch, 12 steps, saved every second one.

    `tokenizer` and `data` are URIs; `spec` adds fields by section.
    """
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "preset": "Qwen3Dense0P6B",
            "overrides": {
                "vocabSize": 49152,
                "hiddenSize": 64,
                "intermediateSize": 128,
                "numHiddenLayers": 2,
                "numAttentionHeads": 2,
                "numKeyValueHeads": 1,
            },
            "tokenizer": {"uri": tokenizer},
        },
        "data": {
            "datasets": [{"name": "chats", "uri": data}],
            "packing": {"maxLength": 256},
        },
        "training": {"totalStep": TOTAL_STEPS, "globalBatchSize": 4, "optimizer": {"lr": 1e-3}},
        "checkpoint": {"everySteps": EVERY_STEPS},
        "compute": {"processesPerNode": processes},
        # Enough for every kill that a test makes; what ends a job early has tests of its own.
        "runPolicy": {"retries": 50},
    }
    for section, fields in spec.items():
        sections[section] = sections.get(section, {}) | fields
    return {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {"name": "small"},
        "spec": sections | {"output": [{"uri": "pvc://results/model"}]},
    }


@dataclass
class LocalRun:
    """`sft run` in `folder`; everything that it makes lies there."""

    folder: Path
    manifest: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def storage(self) -> Path:
        return self.folder / "model.checkpoints"

    @property
    def claims(self) -> list[str]:
        return ["--claim", f"results={self.folder}"]

    @property
    def log(self) -> str:
        return (self.folder / "sft.log").read_text()

    def status(self) -> dict[str, Any]:
        """`{}` before there is one."""
        try:
            status: dict[str, Any] = json.loads((self.folder / "job.json").read_text())["status"]
        except FileNotFoundError:
            return {}
        return status

    def start(self) -> "LocalRun":
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "job.yaml"
        file.write_text(yaml.safe_dump(self.manifest))
        command = [Path(sys.executable).with_name("sft"), "run", file, "--work-dir", self.folder]
        with (self.folder / "sft.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *self.claims],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_shell() | self.environment,
            )
        return self

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=PATIENCE_SECONDS)

    def stop(self) -> None:
        """Nothing of this run lives on, whatever became of its test."""
        for pid in [*([self.process.pid] if self.process else []), *self.processes("sft_trainer")]:
            with contextlib.suppress(ProcessLookupError):
                kill(pid)

    def succeed(self) -> "LocalRun":
        assert self.wait() == 0, self.log
        return self

    def until(self, condition: Callable[[], Any]) -> Any:
        """The first true answer; fails where the run ends, or nothing happens, before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if answer := condition():
                return answer
            assert self.process is None or self.process.poll() is None, f"the run ended first:\n{self.log}"
            time.sleep(0.02)
        raise AssertionError(f"waited {PATIENCE_SECONDS} s in vain:\n{self.log}")

    def until_step(self, step: int, *, attempt: int = 1) -> None:
        """By the metrics, which know a step the moment that it is finished."""
        path = self.storage / "attempts" / str(attempt) / "metrics.jsonl"
        self.until(lambda: path.exists() and path.read_text().count('"step"') and last_step(path) >= step)

    def processes(self, what: str) -> dict[int, dict[str, str]]:
        """Environment by pid of this run's live processes whose name and command line contain `what`."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                # A fork has its parent's command line.
                command = (folder / "comm").read_text().replace("\n", " ")
                command += (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if what not in command or "multiprocessing" in command:
                    continue
                environment = dict(
                    entry.split("=", 1) for entry in (folder / "environ").read_text().split("\0") if "=" in entry
                )
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if environment.get("SFTJOB_SCRATCH", "").startswith(str(self.folder)):
                found[int(folder.name)] = environment
        return found

    def rank(self, number: int) -> int:
        """The pid of a rank, as soon as it runs."""
        return int(next(iter(self.until(lambda: self.processes(f"sft-rank-{number} ")))))

    def metrics(self) -> dict[int, dict[str, Any]]:
        """By step; of a step that several attempts trained, the last attempt's."""
        lines: dict[int, dict[str, Any]] = {}
        for attempt in sorted((self.storage / "attempts").iterdir(), key=lambda path: int(path.name)):
            path = attempt / "metrics.jsonl"
            for line in path.read_text().splitlines() if path.exists() else []:
                values = json.loads(line)
                if "eval_loss" in values:
                    continue
                lines[values["step"]] = values
        return dict(sorted(lines.items()))

    def trained(self) -> dict[int, tuple[float, float, list[int]]]:
        """By step: loss, gradient norm and ids of the samples."""
        return {step: (line["loss"], line["grad_norm"], line["samples"]) for step, line in self.metrics().items()}

    def final_state(self, *, step: int = TOTAL_STEPS) -> dict[str, torch.Tensor]:
        """Weights, moments and random state of a checkpoint, read by torch's own converter."""
        whole = self.folder / f"step-{step}.pt"
        dcp_to_torch_save(self.storage / f"step-{step}", whole)
        return flatten(torch.load(whole, weights_only=True))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def last_step(metrics: Path) -> int:
    return int(re.findall(r'"step": (\d+)', metrics.read_text())[-1])


def assert_bit_equal(run: LocalRun, undisturbed: LocalRun) -> None:
    """Losses, gradient norms, sample ids, final weights, moments and random states."""
    assert run.trained() == undisturbed.trained()
    ours, theirs = run.final_state(), undisturbed.final_state()
    assert ours.keys() == theirs.keys()
    different = {name: ours[name] - theirs[name] for name in ours if not torch.equal(ours[name], theirs[name])}
    assert different == {}


def fingerprint(folder: Path) -> dict[str, str]:
    """Of every file under a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _shell() -> dict[str, str]:
    """A user's environment: without what torch's compiler writes into that of the process that runs the tests."""
    return {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
