"""Runs contenders in turn, each time in a process of its own. Called by the benchmarks of training."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contenders import Settings
from sft_trainer.launcher.resources import available_cpus, rank_environment


class ContenderFailed(Exception):
    """With the end of its log."""


def take_turns(names: list[str], settings: Settings, *, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What each measured, by name and turn. Raises ContenderFailed."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names:
            print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            turns[name].append(measure(name, settings))
    return turns


def measure(name: str, settings: Settings) -> dict[str, Any]:
    with Turns() as turns:
        return turns.measure(name, settings)


class Turns:
    """One contender at a time, each in a process of its own: what one imports must not slow or change another."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Contender] = {}

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *_: object) -> None:
        for contender in self._waiting.values():
            contender.kill()

    def measure(self, name: str, settings: Settings, *, then: str | None = None) -> dict[str, Any]:
        """`then` imports what it needs meanwhile. Raises ContenderFailed."""
        contender = self._waiting.pop(name, None) or _Contender(name)
        if then and then not in self._waiting:
            self._waiting[then] = _Contender(then)
        return contender.measure(settings)


class _Contender:
    def __init__(self, name: str) -> None:
        self._name = name
        module = "benchmarks.unsloth_first" if name == "unsloth" else "benchmarks.contenders"
        environment = os.environ | rank_environment(processes_per_node=1, cpus=available_cpus())
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, name],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            text=True,
        )

    def measure(self, settings: Settings) -> dict[str, Any]:
        result_file = Path(settings.cache) / "result.json"
        self._process.communicate(json.dumps({"settings": vars(settings), "result": str(result_file)}) + "\n")
        if self._process.returncode:
            self._log.seek(0)
            log = self._log.read()
            raise ContenderFailed(f"{self._name} ended with code {self._process.returncode}:\n{log[-4000:]}")
        result: dict[str, Any] = json.loads(result_file.read_text())
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def largest_difference(turns: dict[str, list[dict[str, Any]]], *, reference: str) -> float:
    """Of losses, over all turns and steps, relative to those of the reference; contenders without losses aside."""
    expected = turns[reference][0]["losses"]
    return max(
        abs(loss - wanted) / wanted
        for measured in turns.values()
        for turn in measured
        if turn["losses"]
        for loss, wanted in zip(turn["losses"], expected, strict=True)
    )
