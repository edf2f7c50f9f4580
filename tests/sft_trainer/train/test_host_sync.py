"""A GPU computes behind its host. Asked in a step what it has computed, it would be idle until the host goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_run import SmallRun, save_base
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sft_trainer.datasets.batch import BatchStream
from sft_trainer.train import loop
from sftjob.options import LoRAConfig
from tests.sft_trainer.model import tiny_models as tiny

ASKING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim",
    "unique_consecutive",
}  # fmt: skip
"""Operations whose answer, or its shape, the host has to know: `item()`, `if tensor:`, `x[mask]`, sizes that depend on
values."""


class Questions(TorchDispatchMode):
    """Those that are asked while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ASKING:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def steps_watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Questions]:
    questions, step, make_batches = Questions(), loop._Run._train_step, BatchStream.micro_batches

    def watched(self: Any, number: int) -> None:
        with questions:
            step(self, number)

    def unwatched(*args: Any, **kwargs: Any) -> Any:
        # Of tensors of the host.
        with _disable_current_modes():
            return make_batches(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_train_step", watched)
        patched.setattr(BatchStream, "micro_batches", unwatched)
        yield questions


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
@pytest.mark.parametrize("adapts", [False, True])
def test_a_step_asks_the_device_nothing(
    moments: str, adapts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path / "run", moments=moments, precision="bf16", threshold=1e9, total_steps=3, interval=None)
    if adapts:
        run.load_from, run.lora = save_base(tmp_path / "base"), LoRAConfig(rank=4, alpha=8)
    with steps_watched(monkeypatch) as questions:
        assert run.go().last_step == 3
    assert questions.asked == []


@pytest.mark.parametrize("case", ["qwen3_moe", "gpt_oss", "gemma2"])
def test_models_ask_the_device_nothing(case: str, tmp_path: Path) -> None:
    model = tiny.built(tiny.save_random_model(tmp_path, case))
    pack = tiny.pack(tiny.documents([23, 17]))
    with Questions() as questions:
        model(pack).backward()
    assert questions.asked == []
