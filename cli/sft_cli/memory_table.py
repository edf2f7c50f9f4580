"""`sft train --dry-run`: what each rank will hold, by the trainer's estimate. Started as a process of its own."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from sft_cli.ask_trainer import ask_trainer
from sft_cli.refusal import Refusal
from sft_operator.local.claims import Claims
from sftjob.memory import MemoryEstimate, MemoryTask
from sftjob.names import HUB
from sftjob.spec import SFTJobSpec


def memory_lines(spec: SFTJobSpec, claims: Claims) -> Iterator[str]:
    """A table, or in one line why there is none: a job may be written where its model is not."""
    if spec.model is None:
        yield "memory: not told, for only the script knows its model"
        return
    uri = spec.model.load_from.uri if spec.model.load_from else None
    folder = claims.path_of(uri) if uri and uri.startswith(("file://", "pvc://")) else None
    if folder and not Path(folder).is_dir():
        folder = None
    if folder is None and spec.model.preset is None and not (uri and uri.startswith(HUB)):
        yield f"memory: not told, for {uri} is not on this machine"
        return
    if importlib.util.find_spec("torch") is None:
        yield "memory: not told, for the trainer is not installed; pip install '.[trainer]' where sftjob's source is"
        return
    task = MemoryTask(spec=spec, folder=folder).to_json()
    try:
        # What is printed is a job's file.
        estimate = MemoryEstimate.from_json(ask_trainer("estimate_memory", task, console=Console(stderr=True)))
    except Refusal as refusal:
        yield f"memory: not told, for this job would fail: {' '.join(str(refusal).split())}"
        return
    yield (
        f"memory of each rank, {estimate.precision} activations, a pack of {estimate.pack_tokens} tokens; the "
        "allocator's overhead comes on top:"
    )
    together = "at least" if estimate.is_least else "together"
    for kind, size in (estimate.kinds | {together: estimate.together}).items():
        yield f"  {kind:12}" + (f"{size / 1e9:9.3f} GB" if size is not None else "  unknown")
