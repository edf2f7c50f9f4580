"""Our Trainer's step against a plain transformers loop and TRL's SFTTrainer: `python -m benchmarks.trainer_vs_trl`.

`--json` prints one JSON object, else a table is printed. What makes it fair: the same weights, token ids, packs, order,
optimiser and fp32; one process and the same allocator settings for each; TRL without bf16, gradient checkpointing and
trackers; the contenders take turns, so that a busy machine slows all of them; the first steps of each turn don't count;
and nothing is reported unless the losses agree at every step. Deviation: TRL is handed our packs, for its own would
differ; its collator, loss and loop are its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, Settings
from benchmarks.machine import machine_now
from examples import smollm2, tickets
from sft_trainer.launcher.resources import available_cpus, rank_environment

MOST_DIFFERENCE = 2e-3
"""Of the losses, relative. fp32 sums in another order differ by far less at first, and each update adds to it."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares step times of our Trainer, a plain loop and TRL.")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--data", type=Path, help="JSONL chats; without it, the example's tickets")
    parser.add_argument("--max-length", type=int, default=512, help="tokens a pack holds")
    parser.add_argument("--steps", type=int, default=8, help="of one pack each, a turn")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each turn that don't count")
    parser.add_argument("--rounds", type=int, default=2, help="turns that each contender takes")
    arguments = parser.parse_args()
    if arguments.warmup >= arguments.steps:
        parser.error(f"--warmup: {arguments.warmup} leaves none of the {arguments.steps} steps; use fewer")
    model, machine = smollm2.prepare(), machine_now()
    with tempfile.TemporaryDirectory(dir=smollm2.ROOT / ".cache") as folder:
        scratch = Path(folder)
        data = arguments.data.absolute() if arguments.data else tickets.write(scratch / "tickets.jsonl", rows=159)
        settings = Settings(str(model), str(data), folder, arguments.max_length, arguments.steps)
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
        for turn in range(arguments.rounds):
            for name in CONTENDERS:
                print(f"round {turn + 1} of {arguments.rounds}: {name}", file=sys.stderr, flush=True)
                turns[name].append(_measure(name, settings, scratch))
    difference = _largest_difference(turns)
    if difference > MOST_DIFFERENCE:
        losses = {name: measured[0]["losses"] for name, measured in turns.items()}
        print(f"the losses differ by {difference:.2e}, so this compares nothing: {losses}", file=sys.stderr)
        return 1
    report = _report(turns, warmup=arguments.warmup) | {
        "settings": {
            "model": model.name,
            "data": arguments.data.name if arguments.data else "159 support tickets",
            "maxLength": arguments.max_length,
            "steps": arguments.steps,
            "warmup": arguments.warmup,
            "rounds": arguments.rounds,
            "precision": "fp32",
        },
        "largestLossDifference": difference,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "accelerate")},
        "machine": machine,
    }
    print(json.dumps(report, indent=2) if arguments.json else _table(report))
    return 0


def _measure(name: str, settings: Settings, scratch: Path) -> dict[str, Any]:
    settings_file, result_file = scratch / "settings.json", scratch / "result.json"
    settings_file.write_text(json.dumps(vars(settings)))
    result_file.unlink(missing_ok=True)
    log = scratch / f"{name}.log"
    command = [sys.executable, "-m", "benchmarks.contenders", name, str(settings_file), str(result_file)]
    # Imports that belong to one contender alone must not slow or change another: each turn is a new process.
    environment = os.environ | rank_environment(processes_per_node=1, cpus=available_cpus())
    with log.open("w") as output:
        code = subprocess.run(command, env=environment, stdout=output, stderr=output).returncode
    if code:
        sys.exit(f"{name} ended with code {code}:\n{log.read_text()[-4000:]}")
    result: dict[str, Any] = json.loads(result_file.read_text())
    return result


def _largest_difference(turns: dict[str, list[dict[str, Any]]]) -> float:
    """Over all turns and steps, relative to the plain loop's loss."""
    reference = turns["plain"][0]["losses"]
    return max(
        abs(loss - expected) / expected
        for measured in turns.values()
        for turn in measured
        for loss, expected in zip(turn["losses"], reference, strict=True)
    )


def _report(turns: dict[str, list[dict[str, Any]]], *, warmup: int) -> dict[str, Any]:
    results = {}
    for name, measured in turns.items():
        seconds = [second for turn in measured for second in turn["seconds"][warmup:]]
        tokens = [count for turn in measured for count in turn["tokens"][warmup:]]
        results[name] = {
            "stepSeconds": round(statistics.median(seconds), 4),
            "fastestStepSeconds": round(min(seconds), 4),
            "tokensPerSecond": round(statistics.median(t / s for t, s in zip(tokens, seconds, strict=True)), 1),
            "peakGiB": round(max(turn["peak_bytes"] for turn in measured) / 2**30, 2),
            "losses": [round(loss, 5) for loss in measured[0]["losses"]],
        }
    plain = turns["plain"][0]
    return {
        "results": results,
        "speedup": {
            f"oursAgainst{name.capitalize()}": round(results[name]["stepSeconds"] / results["ours"]["stepSeconds"], 3)
            for name in turns
            if name != "ours"
        },
        "trainedShare": round(sum(plain["trained_tokens"]) / sum(plain["tokens"]), 3),
    }


def _table(report: dict[str, Any]) -> str:
    lines = [f"{'':8}{'s/step':>10}{'tokens/s':>10}{'peak GiB':>10}"]
    for name, result in report["results"].items():
        lines.append(f"{name:8}{result['stepSeconds']:10.3f}{result['tokensPerSecond']:10.1f}{result['peakGiB']:10.2f}")
    lines += [f"{name}: {ratio:.2f} times as fast" for name, ratio in report["speedup"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
