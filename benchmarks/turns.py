"""Runs contenders in turn, each time in a process of its own. Called by the benchmarks of training."""

import json
import os
import subprocess
import sys
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
    """Imports that belong to one contender alone must not slow or change another: hence the process."""
    scratch = Path(settings.cache)
    settings_file, result_file, log = scratch / "settings.json", scratch / "result.json", scratch / f"{name}.log"
    settings_file.write_text(json.dumps(vars(settings)))
    module = "benchmarks.unsloth_first" if name == "unsloth" else "benchmarks.contenders"
    command = [sys.executable, "-m", module, name, str(settings_file), str(result_file)]
    environment = os.environ | rank_environment(processes_per_node=1, cpus=available_cpus())
    with log.open("w") as output:
        code = subprocess.run(command, env=environment, stdout=output, stderr=output).returncode
    if code:
        raise ContenderFailed(f"{name} ended with code {code}:\n{log.read_text()[-4000:]}")
    result: dict[str, Any] = json.loads(result_file.read_text())
    return result


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
