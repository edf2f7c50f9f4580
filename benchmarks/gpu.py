"""Tokens a second and MFU of full fine-tuning on one GPU, ours and TRL's: `python -m benchmarks.gpu`.

`--json` prints one JSON object, made to be kept as a baseline: it has the command, the configuration, the device and
every version. The models have Qwen3's sizes and random weights, the same for both, and the data are documents as long
as a pack, all tokens trained, so that figures can be held against published ones; speed depends on neither weights nor
words. Both train fp32 weights with bf16 products, one pack a step, packed and padding-free, with the fused AdamW. Who
runs out of memory tries again with recomputed layers, and the result says so. MFU is by `sft_trainer.train.flops`, for
both alike. `--tiny` runs the whole of it in seconds on a CPU, in fp32, where no limit is known and MFU is null.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import random_qwen3
from benchmarks.contenders import Settings
from benchmarks.machine import machine_now
from benchmarks.turns import ContenderFailed, largest_difference, measure
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
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 512}
CONTENDERS = ("ours", "trl")
MOST_DIFFERENCE = {"fp32": 2e-3, "bf16": 3e-2}
"""Of the losses, relative."""
_DOCUMENTS = 64


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures tokens a second and MFU on one GPU, ours and TRL's.")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--max-length", type=int, default=4096, help="tokens of a pack, and of each document")
    parser.add_argument("--steps", type=int, default=40, help="of one pack each, a turn")
    parser.add_argument("--warmup", type=int, default=15, help="steps of each turn that don't count")
    parser.add_argument("--rounds", type=int, default=2, help="turns that each contender takes")
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers, two steps, any device")
    arguments = parser.parse_args()
    if arguments.tiny:
        models, arguments.max_length, arguments.rounds = {"tiny": TINY}, 64, 1
        arguments.steps, arguments.warmup = 2, 1
    elif not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny runs without one")
    else:
        models = {name: MODELS[name] for name in arguments.models}
    if arguments.warmup >= arguments.steps:
        parser.error(f"--warmup: {arguments.warmup} leaves none of the {arguments.steps} steps; use fewer")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "fp32"
    peak = peak_flops(device, precision=precision)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "peakFlopsPerSecond": peak,
        "settings": {
            "maxLength": arguments.max_length,
            "steps": arguments.steps,
            "warmup": arguments.warmup,
            "rounds": arguments.rounds,
            "precision": precision,
        },
        "machine": machine_now(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "accelerate")},
        "models": {},
    }
    for name, fields in models.items():
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "documents.jsonl"
            data.write_text("".join(_documents(arguments.max_length)))
            model = random_qwen3.save(Path(folder) / "model", **fields)
            print(name, file=sys.stderr, flush=True)
            settings = Settings(
                str(model), str(data), folder, arguments.max_length, arguments.steps, precision=precision
            )
            report["models"][name] = _compared(settings, arguments.rounds, arguments.warmup, peak)
    print(json.dumps(report, indent=2) if arguments.json else _table(report))
    return 0


def _documents(length: int) -> Iterator[str]:
    """JSONL of texts that fill a pack, of a byte a token; the template's and the end's leave no room for more."""
    letters = "abcdefghijklmnopqrstuvwxyz "
    generator = torch.Generator().manual_seed(0)
    for _ in range(_DOCUMENTS):
        drawn = torch.randint(len(letters), (length - 2,), generator=generator).tolist()
        yield json.dumps({"text": "".join(letters[index] for index in drawn)}) + "\n"


def _compared(settings: Settings, rounds: int, warmup: int, peak: float | None) -> dict[str, Any]:
    """Exits where the losses differ: then nothing is compared."""
    chosen: dict[str, Settings] = {}
    turns: dict[str, list[dict[str, Any]]] = {}
    for turn in range(rounds):
        for name in CONTENDERS:
            print(f"  round {turn + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            measured, chosen[name] = _measured(name, chosen.get(name, settings))
            turns.setdefault(name, []).append(measured)
    difference = largest_difference(turns, reference="ours")
    if difference > MOST_DIFFERENCE[settings.precision]:
        losses = {name: measured[0]["losses"] for name, measured in turns.items()}
        sys.exit(f"the losses differ by {difference:.2e}, so this compares nothing: {losses}")
    results: dict[str, Any] = {name: _result(measured, warmup, peak) for name, measured in turns.items()}
    for name, result in results.items():
        result["recompute"] = chosen[name].recompute
    return results | {
        "ratio": round(results["ours"]["tokensPerSecond"] / results["trl"]["tokensPerSecond"], 3),
        "memory_ratio": round(results["ours"]["peakBytes"] / results["trl"]["peakBytes"], 3),
        "largestLossDifference": difference,
    }


def _measured(name: str, settings: Settings) -> tuple[dict[str, Any], Settings]:
    """With the settings that it took: recomputed layers where memory ran out without. Exits at any other failure."""
    try:
        return measure(name, settings), settings
    except ContenderFailed as failed:
        if "OutOfMemoryError" not in str(failed) or settings.recompute:
            sys.exit(str(failed))
    return _measured(name, replace(settings, recompute=True))


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


def _table(report: dict[str, Any]) -> str:
    lines = [f"{report['device']}\n{'':20}{'tokens/s':>10}{'MFU':>8}{'GiB':>8}"]
    for model, compared in report["models"].items():
        for name in CONTENDERS:
            result = compared[name]
            mfu = "-" if result["mfu"] is None else f"{result['mfu']:.1%}"
            gib = result["peakBytes"] / 2**30
            note = "  (layers recomputed)" if result["recompute"] else ""
            lines.append(f"{model:12}{name:8}{result['tokensPerSecond']:10.1f}{mfu:>8}{gib:8.2f}{note}")
        lines.append(f"{model:12}{compared['ratio']} times as fast as TRL, {compared['memory_ratio']} of its memory")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
