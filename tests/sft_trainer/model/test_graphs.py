"""What of captured layers a CPU can show; test_on_gpu.py captures them."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models as tiny
import torch

from sft_trainer.model.graphs import leaves, padded_starts


@pytest.mark.parametrize(
    ("starts", "padded"),
    [
        ([0, 9], [0, 9]),
        ([0, 4, 9], [0, 4, 9, 9, 9, 9, 9, 9]),
        ([0, 1, 2, 3, 4, 5, 6, 9], [0, 1, 2, 3, 4, 5, 6, 9]),
        ([0, 1, 2, 3, 4, 5, 6, 7, 9], [0, 1, 2, 3, 4, 5, 6, 7, *[9] * 8]),
    ],
)
def test_few_numbers_of_documents_occur(starts: list[int], padded: list[int]) -> None:
    found = padded_starts(torch.tensor(starts, dtype=torch.int32), tokens=9)
    assert found.tolist() == padded
    assert found.dtype == torch.int32


@pytest.mark.parametrize("torch_compile", [False, True])
def test_leaves_are_those_that_a_backward_adds_to(torch_compile: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
    model[0].bias.requires_grad_(False)
    unused = torch.nn.Linear(3, 3)
    for layer in (*model, unused):
        if torch_compile:
            layer.compile()
    result = model(torch.ones(2, 3)) + unused(torch.ones(2, 3)).detach()
    found = leaves(result)
    result.sum().backward()
    expected = {parameter for parameter in (*model.parameters(), *unused.parameters()) if parameter.grad is not None}
    assert len(found) == len(expected) == 3
    assert set(found) == expected


@pytest.mark.parametrize("case", ["qwen3_tied", "mistral", "gemma2", "gpt2", "qwen3_moe"])
def test_pads_at_a_documents_end_change_neither_loss_nor_gradients(case: str, tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, case)
    [document] = tiny.documents([13])
    alone = tiny.pack([document])
    padded = tiny.pack([torch.cat([document, torch.zeros(6, dtype=torch.int64)])])
    padded.labels[0, 12:] = -100
    padded.position_ids[0, 13:] = 0
    padded = replace(padded, trained_rows=alone.trained_rows)
    results = []
    for batch in (alone, padded):
        model = tiny.built(folder)
        loss = model(batch)
        loss.backward()
        results.append((loss.item(), tiny.gradients(model)))
    (loss, gradients), (padded_loss, found) = results
    assert padded_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
