"""What recomputation costs in time and saves in memory, on a CPU: `python -m benchmarks.recompute`.

One model, the same packs, fp32; our Trainer as users call it, in a process of its own for each turn. `none`,
`selective` and `full` take turns, so that a busy machine slows all three; the first step of each turn doesn't count.
Nothing is reported unless the losses are equal at every step, to the last bit.

    seconds  of a step: forward, backward and update, the median, and the fastest, which others' work slows least; each
             with its ratio to that of none
    peak     resident memory of the whole process
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from benchmarks import random_qwen3
from benchmarks.contenders import Recompute, Settings
from benchmarks.turns import measure
from examples import smollm2, tickets


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares none, selective and full recomputation.")
    parser.add_argument("--model", choices=["smollm2", "qwen3-11m"], default="smollm2", help="as trainer_vs_trl's")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens a pack holds")
    parser.add_argument("--steps", type=int, default=4, help="of one pack each, a turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns that each kind takes")
    arguments = parser.parse_args()
    kinds: tuple[Recompute, ...] = get_args(Recompute)
    turns: dict[Recompute, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = smollm2.prepare() if arguments.model == "smollm2" else random_qwen3.save(scratch / "qwen3-11m")
        data = tickets.write(scratch / "tickets.jsonl", rows=159)
        settings = Settings(str(model), str(data), folder, arguments.max_length, arguments.steps)
        for turn in range(arguments.rounds):
            for kind in kinds:
                print(f"round {turn + 1} of {arguments.rounds}: {kind}", file=sys.stderr, flush=True)
                turns[kind].append(measure("ours", replace(settings, recompute=kind)))
    losses = {kind: [turn["losses"] for turn in measured] for kind, measured in turns.items()}
    if any(found != losses["none"] for found in losses.values()):
        print(f"the losses differ, so this compares nothing: {losses}", file=sys.stderr)
        return 1
    seconds = {kind: [s for turn in measured for s in turn["seconds"][1:]] for kind, measured in turns.items()}
    peaks = {kind: max(turn["peak_bytes"] for turn in measured) for kind, measured in turns.items()}
    plain, plain_best = statistics.median(seconds["none"]), min(seconds["none"])
    for kind in kinds:
        median, best = statistics.median(seconds[kind]), min(seconds[kind])
        print(
            f"{kind:10}{median:8.2f} s ({median / plain:.2f}){best:8.2f} s ({best / plain_best:.2f}) at best"
            f"{peaks[kind] / 2**30:8.2f} GiB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
