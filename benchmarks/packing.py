"""Our packer against TRL's, and how soon a cached run begins: `python -m benchmarks.packing`, `--json` for one object.

In: lengths drawn from a log-normal distribution (mean about 550, from 16 to the pack's length), the same for both. TRL
is called as its SFTTrainer calls it: `pack_dataset(dataset, seq_length, "bfd")` on int32 ids in memory. Deviation: its
seconds contain the copying of the tokens into packs, ours do not; we copy a pack when its step comes.

The start is `prepare_data` and the first step's batch, without imports, of as many samples with these lengths. The
cache is made by the production path, save that the tokeniser is replaced by one that leaves zeros in sparse files.
`firstSeconds` has no cache, and hashes a sparse JSONL file of four bytes a token; `open_seconds` finds everything in
the cache, and that in memory.
"""

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.machine import machine_now
from sft_trainer.datasets import open_tokens
from sft_trainer.datasets.batch import BatchStream
from sft_trainer.datasets.config import DataloaderConfig
from sft_trainer.datasets.pack import pack_samples
from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.datasets.tokenize import Part

SEED = 42
RANKS = 8
PACKS_A_STEP = 64


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares our packer with TRL's, and times the start of a cached run.")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--max-length", type=int, default=4096, help="tokens a pack holds")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files; sparse ones, but large by their size")
    arguments = parser.parse_args()
    machine = machine_now()
    drawn = np.random.default_rng(SEED).lognormal(6.0, 0.8, arguments.samples)
    lengths = np.clip(drawn, 16, arguments.max_length).astype(np.int64)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        jsonl = Path(folder) / "chats.jsonl"  # made first: one that is written just now is hashed at every opening
        with jsonl.open("wb") as file:
            file.truncate(int(lengths.sum()) * 4)
        report = _packers(lengths, arguments.max_length) | _starts(lengths, arguments.max_length, jsonl)
    report |= {
        "samples": arguments.samples,
        "meanLength": round(float(lengths.mean()), 1),
        "maxLength": arguments.max_length,
        "versions": {name: version(name) for name in ("numpy", "trl", "datasets", "pyarrow")},
        "machine": machine,
    }
    print(json.dumps(report, indent=2) if arguments.json else _table(report))
    return 0


def _packers(lengths: np.ndarray, max_length: int) -> dict[str, Any]:
    """Seconds and fill of each; ours before and after the rival's turn, of which the slower one counts."""
    before, _ = _ours(lengths, max_length)
    rival, rival_fill = _trl(lengths, max_length)
    after, fill = _ours(lengths, max_length)
    seconds = max(before, after)
    return {
        "seconds": round(seconds, 3),
        "fill": round(fill, 6),
        "ratio": round(rival / seconds, 1),
        "trl": {"seconds": round(rival, 3), "fill": round(rival_fill, 6)},
    }


def _ours(lengths: np.ndarray, max_length: int) -> tuple[float, float]:
    began = time.perf_counter()
    packs = pack_samples(lengths, max_length=max_length, level="soft", seed=SEED)
    return time.perf_counter() - began, float(lengths.sum() / (len(packs) * max_length))


def _trl(lengths: np.ndarray, max_length: int) -> tuple[float, float]:
    import pyarrow as pa
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = pa.LargeListArray.from_arrays(offsets, np.zeros(offsets[-1], dtype=np.int32))
    dataset = Dataset(pa.table({"input_ids": ids}))
    began = time.perf_counter()
    packed = pack_dataset(dataset, max_length, "bfd")
    return time.perf_counter() - began, float(lengths.sum() / (len(packed) * max_length))


def _starts(lengths: np.ndarray, max_length: int, jsonl: Path) -> dict[str, float]:
    (jsonl.parent / "tokenizer").mkdir()
    dataset = {"name": "benchmark", "anno_path": jsonl, "format": "text"}  # named: no row of it is ever read
    config = DataloaderConfig(dataset_config_list=[{"dataset": dataset}], pack_max_length=max_length)

    def zeros(*_: Any, folder: Path, **__: Any) -> list[Part]:
        for name, size in (("tokens-0.bin", 4), ("trained-0.bin", 1)):
            with (folder / name).open("wb") as file:
                file.truncate(int(lengths.sum()) * size)
        table = np.stack((lengths, lengths // 2, np.zeros_like(lengths)), axis=1).astype(np.int32)
        np.save(folder / "samples-0.npy", table)
        tokens = int(lengths.sum())
        return [Part(rows=len(table), samples=len(table), tokens=tokens, trained_tokens=int(table[:, 1].sum()))]

    def to_first_batch() -> float:
        began = time.perf_counter()
        data = prepare_data(
            config, tokenizer_path=str(jsonl.parent / "tokenizer"), cache_dir=jsonl.parent / "cache", seed=SEED
        )
        stream = BatchStream(data, seed=SEED, global_batch_size=PACKS_A_STEP, world_size=RANKS, rank=0)
        assert stream.trained_tokens(1)
        assert len(stream.micro_batches(1)) == PACKS_A_STEP // RANKS
        return time.perf_counter() - began

    with patch.object(open_tokens, "build_parts", zeros):
        first = to_first_batch()
    return {"firstSeconds": round(first, 3), "open_seconds": round(to_first_batch(), 3)}


def _table(report: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{report['samples']} samples of {report['meanLength']} tokens in the mean, into {report['maxLength']}",
            f"sftjob  {report['seconds']:8.2f} s  {report['fill']:.3%} full",
            f"TRL     {report['trl']['seconds']:8.2f} s  {report['trl']['fill']:.3%} full",
            f"{report['ratio']} times as fast; a cached run's first batch after {report['open_seconds']} s, "
            f"without a cache (and without tokenising) after {report['firstSeconds']} s",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
