"""A run in mixed precision, whose weights are held in bf16 over a step: as torch's own autocast would have it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_run import SmallRun
from test_resume import die_after
from transformers import PreTrainedModel

from sft_trainer.model import bf16_weights
from sft_trainer.model.build import chosen_precision
from sft_trainer.model.forward import PackForward

EVALUATION = {"fraction": 0.2, "every_steps": 1, "export_best": True}


@pytest.mark.parametrize("torch_compile", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_run_that_dies_and_whose_memory_runs_out_is_autocasts_to_the_bit(
    torch_compile: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of three micro-batches, each evaluated and saved."""
    held = SmallRun(
        tmp_path / "held", precision="bf16", torch_compile=torch_compile, batch=3, total_steps=4, evaluation=EVALUATION
    )
    _run_out_of_memory_once(monkeypatch)
    die_after(2, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        held.go()
    monkeypatch.undo()
    held.go()

    plain = held.another("plain")
    monkeypatch.setattr(bf16_weights._Linear, "forward", torch.nn.Linear.forward)
    _run_out_of_memory_once(monkeypatch)
    plain.go()
    assert held.evaluations(attempt=2) == {step: plain.evaluations()[step] for step in (2, 3, 4)}
    assert held.manifest(4).halvings == plain.manifest(4).halvings == 1
    ours, expected = held.tensors(4), plain.tensors(4)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize(("capability", "chosen"), [(7, "fp32"), (8, "bf16"), (9, "bf16")])
def test_a_gpu_that_emulates_bf16_computes_in_fp32_unless_asked(
    capability: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=capability, minor=5))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert chosen_precision("auto", torch.device("cuda")) == chosen
    assert chosen_precision("bf16", torch.device("cuda")) == "bf16"


def _run_out_of_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second micro-batch of the first step, beside the first one's gradients."""
    forward, failed = PackForward.__call__, []

    def forward_or_fail(self: PackForward, model: PreTrainedModel, *inputs: Any, **options: Any) -> torch.Tensor:
        if model.get_output_embeddings().weight.grad is not None and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GB")
        return forward(self, model, *inputs, **options)

    monkeypatch.setattr(PackForward, "__call__", forward_or_fail)
