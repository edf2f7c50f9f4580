"""How long training stands for a checkpoint: `python -m benchmarks.save_stall`, `--json` for one object.

One model, the same packs, fp32; our Trainer as users call it, in a process of its own for each turn. `sync` and `async`
take turns, so that a busy machine slows both; the first step of each turn doesn't count, nor does the last save, which
is always made between steps. All by the run's own metrics, medians over all saves; nothing is reported unless the
losses are equal at every step, to the last bit.

    stepSeconds   of a step without a save, which is one of `sync` that follows none
    stallSeconds  that training stood for a save
    ratio         of the stall to a step without a save
    savedSeconds  the stall and the step after it, beside which an asynchronous save is written
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from benchmarks import random_qwen3
from benchmarks.machine import machine_now
from examples import tickets
from sft_trainer.config import AdamWConfig, LRConfig
from sft_trainer.datasets.config import DataloaderConfig
from sft_trainer.launcher.resources import available_cpus, rank_environment
from sftjob import names
from sftjob.options import SaveMode

_MODELS: dict[str, dict[str, int]] = {
    "qwen3-99m": {
        "hidden_size": 640,
        "intermediate_size": 1920,
        "num_hidden_layers": 16,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
    },
    "qwen3-11m": {},
}
SEED = 42


@dataclass(frozen=True)
class Turn:
    mode: SaveMode
    model: str
    data: str
    scratch: str
    max_length: int
    every: int
    """Steps from one save to the next."""
    saves: int
    """That count."""


def main() -> int:
    parser = argparse.ArgumentParser(description="How long training stands for a save, between steps and beside them.")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--model", choices=list(_MODELS), default="qwen3-99m", help="random weights of Qwen3's form")
    parser.add_argument("--max-length", type=int, default=512, help="tokens a pack holds, of which a step has one")
    parser.add_argument("--every", type=int, default=4, help="steps from one save to the next")
    parser.add_argument("--saves", type=int, default=3, help="a turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns that each mode takes")
    arguments = parser.parse_args()
    if arguments.every < 2:
        parser.error(f"--every: {arguments.every} leaves no step without a save; use 2 or more")
    machine = machine_now()
    turns: dict[SaveMode, list[list[dict[str, Any]]]] = {mode: [] for mode in get_args(SaveMode)}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = random_qwen3.save(scratch / "model", **_MODELS[arguments.model])
        data = tickets.write(scratch / "tickets.jsonl", rows=159)
        for number in range(arguments.rounds):
            for mode, measured in turns.items():
                print(f"round {number + 1} of {arguments.rounds}: {mode}", file=sys.stderr, flush=True)
                turn = Turn(mode, str(model), str(data), folder, arguments.max_length, arguments.every, arguments.saves)
                measured.append(_in_a_process_of_its_own(turn))
    losses = {mode: [[row["loss"] for row in rows] for rows in measured] for mode, measured in turns.items()}
    if any(found != losses["sync"][0] for measured in losses.values() for found in measured):
        print(f"the losses differ, so this compares nothing: {losses}", file=sys.stderr)
        return 1
    report: dict[str, Any] = {"stepSeconds": _seconds_without_a_save(turns["sync"])}
    for mode, measured in turns.items():
        report[mode] = _of_saves(measured, step_seconds=report["stepSeconds"])
    steps = {mode: [[row["step_seconds"] for row in rows] for rows in measured] for mode, measured in turns.items()}
    report |= {"steps": steps, "model": arguments.model, "maxLength": arguments.max_length, "machine": machine}
    print(json.dumps(report, indent=2) if arguments.json else _table(report))
    return 0


def _in_a_process_of_its_own(turn: Turn) -> list[dict[str, Any]]:
    """The lines of the run's metrics."""
    said = subprocess.run(
        [sys.executable, "-c", "from benchmarks.save_stall import train; train()", json.dumps(asdict(turn))],
        env=os.environ | rank_environment(processes_per_node=1, cpus=available_cpus()),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows: list[dict[str, Any]] = json.loads(said.stdout.splitlines()[-1])
    return rows


def train() -> None:
    """Of a turn, as the only argument; prints the rows."""
    from sft_trainer.model import get_model_config_from_hf
    from sft_trainer.train import Trainer

    turn = Turn(**json.loads(sys.argv[1]))
    dataset = {"name": "benchmark", "anno_path": turn.data, "cache_dir": turn.scratch}
    with tempfile.TemporaryDirectory(dir=turn.scratch) as work_dir:
        Trainer(
            model_cfg=get_model_config_from_hf(turn.model),
            load_from=turn.model,
            tokenizer_path=turn.model,
            dataloader_cfg=DataloaderConfig(
                dataset_config_list=[{"dataset": dataset}], pack_max_length=turn.max_length
            ),
            optim_cfg=AdamWConfig(lr=5e-5),
            lr_cfg=LRConfig(lr_type="constant", warmup_ratio=0),
            # A stall is told with the step after it.
            total_step=turn.every * turn.saves + 1,
            checkpoint_interval=turn.every,
            async_checkpoint=turn.mode == "async",
            precision="fp32",
            work_dir=work_dir,
            seed=SEED,
            report_to=(),
        ).fit()
        [metrics] = Path(work_dir).glob(f"*/{names.metrics(Path(), 1)}")
        print(json.dumps([json.loads(line) for line in metrics.read_text().splitlines()]))


def _seconds_without_a_save(turns: list[list[dict[str, Any]]]) -> float:
    return statistics.median(row["step_seconds"] for rows in turns for row in rows[1:] if not row["save_stall_seconds"])


def _of_saves(turns: list[list[dict[str, Any]]], *, step_seconds: float) -> dict[str, Any]:
    after = [row for rows in turns for row in rows if row["save_stall_seconds"]]
    stalls = [row["save_stall_seconds"] for row in after]
    return {
        "stallSeconds": round(statistics.median(stalls), 4),
        "ratio": round(statistics.median(stalls) / step_seconds, 3),
        "savedSeconds": round(statistics.median(row["save_stall_seconds"] + row["step_seconds"] for row in after), 4),
        "stalls": stalls,
    }


def _table(report: dict[str, Any]) -> str:
    lines = [f"a step without a save  {report['stepSeconds']:7.2f} s"]
    for mode in get_args(SaveMode):
        of = report[mode]
        lines.append(
            f"{mode:6} stall {of['stallSeconds']:7.2f} s, {of['ratio']:.2f} of a step; with the step after it "
            f"{of['savedSeconds']:.2f} s ({len(of['stalls'])} saves)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
