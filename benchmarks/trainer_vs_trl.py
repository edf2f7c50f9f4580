"""Our Trainer's step against a plain transformers loop and TRL's SFTTrainer: `python -m benchmarks.trainer_vs_trl`.

`--json` prints one JSON object, else a table is printed. What makes it fair: the same weights, token ids, packs, order,
optimiser and fp32; one process and the same threads and allocator settings for each; TRL packed and padding-free,
without bf16, gradient checkpointing and trackers; the contenders take turns, so that a busy machine slows all of them;
the first steps of each turn don't count; and nothing is reported unless the losses agree at every step. Deviation: TRL
is handed our packs, for its own would differ; its collator, loss and loop are its own.

    ratio             how many times as fast as TRL, by the medians of the seconds of a step
    memory_ratio      our peak resident memory by TRL's, each of its whole process
    gemm_bound_share  our FLOP/s by those that the step's matrix products alone reach here, taking turns with us; each
                      by its fastest step, for a limit that others' work has lowered is none
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import random_qwen3
from benchmarks.contenders import Settings
from benchmarks.machine import machine_now
from benchmarks.turns import ContenderFailed, largest_difference, take_turns
from examples import smollm2, tickets

CONTENDERS = ["ours", "plain", "trl", "gemm"]
MOST_DIFFERENCE = 2e-3
"""Of the losses, relative. fp32 sums in another order differ by far less at first, and each update adds to it."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares step times of our Trainer, a plain loop and TRL.")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        "--model",
        choices=["qwen3-11m", "smollm2"],
        default="qwen3-11m",
        help="11.3M random weights of Qwen3's form with a vocabulary of 32,000, of bytes; or SmolLM2-135M as published",
    )
    parser.add_argument("--data", type=Path, help="JSONL chats; without it, the example's tickets")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens a pack holds")
    parser.add_argument("--steps", type=int, default=8, help="of one pack each, a turn")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each turn that don't count")
    parser.add_argument("--rounds", type=int, default=2, help="turns that each contender takes")
    arguments = parser.parse_args()
    if arguments.warmup >= arguments.steps:
        parser.error(f"--warmup: {arguments.warmup} leaves none of the {arguments.steps} steps; use fewer")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = smollm2.prepare() if arguments.model == "smollm2" else random_qwen3.save(scratch / "qwen3-11m")
        machine = machine_now()
        data = arguments.data.absolute() if arguments.data else tickets.write(scratch / "tickets.jsonl", rows=159)
        settings = Settings(str(model), str(data), folder, arguments.max_length, arguments.steps)
        try:
            turns = take_turns(CONTENDERS, settings, rounds=arguments.rounds)
        except ContenderFailed as failed:
            sys.exit(str(failed))
    difference = largest_difference(turns, reference="plain")
    if difference > MOST_DIFFERENCE:
        losses = {name: measured[0]["losses"] for name, measured in turns.items()}
        print(f"the losses differ by {difference:.2e}, so this compares nothing: {losses}", file=sys.stderr)
        return 1
    report = _report(turns, warmup=arguments.warmup) | {
        "command": shlex.join(["python", "-m", "benchmarks.trainer_vs_trl", *sys.argv[1:]]),
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


def _report(turns: dict[str, list[dict[str, Any]]], *, warmup: int) -> dict[str, Any]:
    results = {}
    for name, measured in turns.items():
        seconds = [second for turn in measured for second in turn["seconds"][warmup:]]
        flops = [count for turn in measured for count in turn["flops"][warmup:]]
        tokens = [count for turn in measured for count in turn["tokens"][warmup:]]
        results[name] = {
            "stepSeconds": round(statistics.median(seconds), 4),
            "fastestStepSeconds": round(min(seconds), 4),
            "tokensPerSecond": round(statistics.median(t / s for t, s in zip(tokens, seconds, strict=True)), 1),
            "gflopsPerSecond": round(statistics.median(f / s for f, s in zip(flops, seconds, strict=True)) / 1e9, 1),
            "mostGflopsPerSecond": round(max(f / s for f, s in zip(flops, seconds, strict=True)) / 1e9, 1),
            "peakGiB": round(max(turn["peak_bytes"] for turn in measured) / 2**30, 2),
            "losses": [round(loss, 5) for loss in measured[0]["losses"]],
        }
    plain, ours = turns["plain"][0], results["ours"]
    return {
        "ratio": round(results["trl"]["stepSeconds"] / ours["stepSeconds"], 3),
        "memory_ratio": round(ours["peakGiB"] / results["trl"]["peakGiB"], 3),
        "gemm_bound_share": round(ours["mostGflopsPerSecond"] / results["gemm"]["mostGflopsPerSecond"], 3),
        "results": results,
        "trainedShare": round(sum(plain["trained_tokens"]) / sum(plain["tokens"]), 3),
    }


def _table(report: dict[str, Any]) -> str:
    columns = {"s/step": "stepSeconds", "tokens/s": "tokensPerSecond", "GFLOP/s": "gflopsPerSecond", "GiB": "peakGiB"}
    lines = ["        " + "".join(f"{column:>10}" for column in columns)]
    for name, result in report["results"].items():
        lines.append(f"{name:8}" + "".join(f"{result[key]:10.2f}" for key in columns.values()))
    lines.append(
        f"{report['ratio']} times as fast as TRL, {report['memory_ratio']} of its memory, "
        f"{report['gemm_bound_share']:.0%} of what the step's matrix products alone reach"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
