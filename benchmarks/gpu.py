"""Tokens a second, MFU and memory on one GPU, ours, TRL's and Unsloth's: `python -m benchmarks.gpu`.

`--json` prints one JSON object, made to be kept as a baseline: it has the command, the configuration, the device and
every version; `--output FILE` writes it anew after every comparison, so that what is cut off leaves what it has. The
models have Qwen3's sizes and random weights, the same for both, and the data are documents as long as a pack, all
tokens trained, so that figures can be held against published ones; speed depends on neither weights nor words. All
train the same packs a step with bf16 products, packed and padding-free, with the fused AdamW; TRL with Liger Kernel
where that is installed:

    full   fp32 weights
    lora   rank 16 beside every linear module of a frozen base in bf16
    qlora  the same, the base in NF4 with double quantisation

Unsloth takes part where it is installed, and has not been run yet; where it isn't, or fails, `leftOut` says why. Who
runs out of memory tries again with recomputed layers, and the result says so. MFU is by `sft_trainer.train.flops`, for
all alike: with LoRA a frozen matrix has no gradient to compute. `--tiny` runs `full` and `lora` in seconds on a CPU,
in fp32, where no limit is known and MFU is null; NF4 is refused there.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import random_qwen3
from benchmarks.contenders import ALPHA, RANK, Method, Settings
from benchmarks.machine import machine_now
from benchmarks.turns import ContenderFailed, Turns, largest_difference
from sft_trainer.train.flops import peak_flops

_QWEN3 = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 40960}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": _QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "Qwen3-1.7B": _QWEN3
    | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "Qwen3-4B": _QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
METHODS: tuple[Method, ...] = get_args(Method)
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 512}
CONTENDERS = ("ours", "trl", "unsloth")
OPTIONAL = "unsloth"
"""Without it, and where it fails, the others are compared all the same."""
MOST_DIFFERENCE = {"fp32": 2e-3, "bf16": 3e-2}
"""Of the losses, relative."""
_DOCUMENTS = 64


class _NotCompared(Exception):
    """With the reason."""


def main() -> int:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "fp32"
    peak = peak_flops(device, precision=precision)
    libraries = ["torch", "transformers", "trl", "accelerate", "peft"]
    if "qlora" in arguments.methods:
        libraries.append("bitsandbytes")
    # TRL's best on a GPU.
    liger = device.type == "cuda" and find_spec("liger_kernel") is not None
    if liger:
        libraries.append("liger-kernel")
    left_out = _left_out(device)
    if OPTIONAL not in left_out:
        libraries.append(OPTIONAL)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "peakFlopsPerSecond": peak,
        "settings": {
            "maxLength": arguments.max_length,
            "packsPerStep": arguments.packs,
            "steps": arguments.steps,
            "warmup": arguments.warmup,
            "rounds": arguments.rounds,
            "precision": precision,
            "lora": {"rank": RANK, "alpha": ALPHA},
        },
        "machine": machine_now(),
        "versions": {name: version(name) for name in libraries},
        "leftOut": left_out,
        "models": {},
    }
    ends_at = time.monotonic() + arguments.seconds if arguments.seconds else float("inf")
    failed = False
    print(_HEADER, file=sys.stderr, flush=True)
    with Turns() as processes:
        for name in arguments.models:
            with tempfile.TemporaryDirectory() as folder:
                data = Path(folder) / "documents.jsonl"
                data.write_text("".join(_documents(arguments.max_length)))
                dtype = torch.bfloat16 if precision == "bf16" else torch.float32
                fields = TINY if arguments.tiny else MODELS[name]
                model = random_qwen3.save(Path(folder) / "model", dtype=dtype, **fields)
                for method in arguments.methods:
                    settings = Settings(
                        str(model),
                        str(data),
                        folder,
                        arguments.max_length,
                        arguments.steps,
                        packs=arguments.packs,
                        liger=liger,
                        precision=precision,
                        method=method,
                    )
                    try:
                        compared = _compared(
                            processes,
                            settings,
                            arguments.rounds,
                            arguments.warmup,
                            peak,
                            ends_at=ends_at,
                            left_out=left_out,
                        )
                    except _NotCompared as reason:
                        # What else was asked for is measured all the same: time on a GPU is dear.
                        failed, compared = True, {"notCompared": str(reason)}
                    report["models"].setdefault(name, {})[method] = compared
                    print("\n".join(_rows(name, method, compared)), file=sys.stderr, flush=True)
                    if arguments.output:
                        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2) if arguments.json else _table(report))
    return int(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures tokens a second and MFU on one GPU, ours and TRL's.")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--output", type=Path, help="a file for that object, written anew after every comparison")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--max-length", type=int, default=4096, help="tokens of a pack, and of each document")
    parser.add_argument("--packs", type=int, default=8, help="of a step, which go through the model one by one")
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each turn that don't count")
    parser.add_argument("--rounds", type=int, default=2, help="turns that each contender takes")
    parser.add_argument("--seconds", type=float, help="begin no turn later than this after the start")
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers, two steps, any device")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.models, arguments.max_length, arguments.rounds = ["tiny"], 64, 1
        arguments.packs, arguments.steps, arguments.warmup = 2, 2, 1
        if not torch.cuda.is_available():
            arguments.methods = [method for method in arguments.methods if method != "qlora"]
    elif not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny runs without one")
    if arguments.warmup >= arguments.steps:
        parser.error(f"--warmup: {arguments.warmup} leaves none of the {arguments.steps} steps; use fewer")
    return arguments


def _documents(length: int) -> Iterator[str]:
    """JSONL of texts that fill a pack, of a byte a token, with the token of their end."""
    letters = "abcdefghijklmnopqrstuvwxyz "
    generator = torch.Generator().manual_seed(0)
    for _ in range(_DOCUMENTS):
        drawn = torch.randint(len(letters), (length - 1,), generator=generator).tolist()
        yield json.dumps({"text": "".join(letters[index] for index in drawn)}) + "\n"


def _left_out(device: torch.device) -> dict[str, str]:
    """By contender, with the reason."""
    if find_spec(OPTIONAL) is None:
        return {OPTIONAL: "not installed"}
    return {} if device.type == "cuda" else {OPTIONAL: "needs a GPU"}


def _compared(
    processes: Turns,
    settings: Settings,
    rounds: int,
    warmup: int,
    peak: float | None,
    *,
    ends_at: float,
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Raises _NotCompared where a contender fails, the losses differ, or time is over before each had a turn."""
    left_out = dict(left_out)
    chosen: dict[str, Settings] = {}
    turns: dict[str, list[dict[str, Any]]] = {}
    taking_part = [name for name in CONTENDERS if name not in left_out]
    following = dict(zip(taking_part, taking_part[1:] + taking_part[:1], strict=True))
    for turn in range(rounds):
        if time.monotonic() > ends_at:
            break
        for name in CONTENDERS:
            if name in left_out:
                continue
            print(f"  round {turn + 1} of {rounds}: {settings.method}, {name}", file=sys.stderr, flush=True)
            try:
                measured, chosen[name] = _measured(processes, name, chosen.get(name, settings), then=following[name])
            except _NotCompared as reason:
                if name != OPTIONAL:
                    raise
                left_out[name] = str(reason)
                turns.pop(name, None)
                continue
            turns.setdefault(name, []).append(measured)
    if not turns:
        raise _NotCompared("the time was over")
    if OPTIONAL in turns:
        differs = largest_difference({name: turns[name] for name in ("ours", OPTIONAL)}, reference="ours")
        if differs > MOST_DIFFERENCE[settings.precision]:
            left_out[OPTIONAL] = f"its losses differ by {differs:.2e}: {turns.pop(OPTIONAL)[0]['losses']}"
    difference = largest_difference(turns, reference="ours")
    if difference > MOST_DIFFERENCE[settings.precision]:
        losses = {name: measured[0]["losses"] for name, measured in turns.items()}
        raise _NotCompared(f"the losses differ by {difference:.2e}: {losses}")
    results: dict[str, Any] = {name: _result(measured, warmup, peak) for name, measured in turns.items()}
    for name, result in results.items():
        result["recompute"] = chosen[name].recompute
    for name in set(results) - {"ours"}:
        results[name]["ratio"] = round(results["ours"]["tokensPerSecond"] / results[name]["tokensPerSecond"], 3)
        results[name]["memory_ratio"] = round(results["ours"]["peakBytes"] / results[name]["peakBytes"], 3)
    return results | {
        "ratio": results["trl"]["ratio"],
        "memory_ratio": results["trl"]["memory_ratio"],
        "largestLossDifference": difference,
        "leftOut": left_out,
    }


def _measured(processes: Turns, name: str, settings: Settings, *, then: str) -> tuple[dict[str, Any], Settings]:
    """With the settings that it took: recomputed layers where memory ran out without. Raises _NotCompared."""
    try:
        return processes.measure(name, settings, then=then), settings
    except ContenderFailed as failed:
        if "OutOfMemoryError" not in str(failed) or settings.recompute != "none":
            raise _NotCompared(str(failed)) from None
    return _measured(processes, name, replace(settings, recompute="full"), then=then)


def _result(turns: list[dict[str, Any]], warmup: int, peak: float | None) -> dict[str, Any]:
    def rate(of: str) -> float:
        """A second, the median over steps."""
        pairs = [(n, s) for turn in turns for n, s in zip(turn[of][warmup:], turn["seconds"][warmup:], strict=True)]
        return statistics.median(number / seconds for number, seconds in pairs)

    return {
        "tokensPerSecond": round(rate("tokens"), 1),
        "tflops": float(f"{rate('flops') / 1e12:.4g}"),
        "mfu": round(rate("flops") / peak, 4) if peak else None,
        "peakBytes": max(turn["peak_bytes"] for turn in turns),
        "losses": [round(loss, 5) for loss in turns[0]["losses"]],
    }


_HEADER = f"{'':28}{'tokens/s':>10}{'MFU':>8}{'GiB':>8}"


def _rows(model: str, method: str, compared: dict[str, Any]) -> Iterator[str]:
    if "notCompared" in compared:
        yield f"{model:12}{method:8}not compared: {compared['notCompared']}"
        return
    for name in CONTENDERS:
        if name in compared["leftOut"]:
            yield f"{model:12}{method:8}{name:8}left out: {compared['leftOut'][name]}"
            continue
        result = compared[name]
        mfu = "-" if result["mfu"] is None else f"{result['mfu']:.1%}"
        gib = result["peakBytes"] / 2**30
        note = "  (layers recomputed)" if result["recompute"] != "none" else ""
        yield f"{model:12}{method:8}{name:8}{result['tokensPerSecond']:10.1f}{mfu:>8}{gib:8.2f}{note}"
    for name, shown in (("trl", "TRL"), (OPTIONAL, "Unsloth")):
        if name in compared:
            ratio, memory = compared[name]["ratio"], compared[name]["memory_ratio"]
            yield f"{model:12}{method:8}{ratio} times as fast as {shown}, {memory} of its memory"


def _table(report: dict[str, Any]) -> str:
    rows = [
        row
        for model, methods in report["models"].items()
        for method, compared in methods.items()
        for row in _rows(model, method, compared)
    ]
    return "\n".join([report["device"], _HEADER, *rows])


if __name__ == "__main__":
    sys.exit(main())
