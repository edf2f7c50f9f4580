"""Layers that are computed again in the backward: the same numbers, fewer bytes kept."""

import pytest
import tiny_models as tiny
import torch

from sft_trainer.model.recompute import recomputed_layers
from sftjob.options import FSDPConfig

LAYERS = 4


def step(folder: str, ratio: float) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients, and the bytes that the forward keeps for the backward, weights not counted."""
    model = tiny.built(folder, fsdp_cfg=FSDPConfig(recompute_ratio=ratio))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = tiny.pack(tiny.documents([40, 60, 23]))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(batch)
    loss.backward()
    return loss.detach(), tiny.gradients(model), sum(kept.values())


@pytest.mark.parametrize("case", ["qwen3_tied", "mistral", "gpt2", "qwen3_moe"])
def test_loss_and_gradients_are_bit_equal_and_each_layer_keeps_less(case: str, tmp_path) -> None:
    folder = tiny.save_random_model(tmp_path, case, num_hidden_layers=LAYERS)
    none, half, full = (step(folder, ratio) for ratio in (0.0, 0.5, 1.0))
    for loss, gradients, _ in (half, full):
        assert torch.equal(loss, none[0])
        assert gradients.keys() == none[1].keys()
        for name, gradient in gradients.items():
            assert torch.equal(gradient, none[1][name]), name
    # A layer keeps several times its input, whatever it is made of; what is outside of the layers stays.
    assert half[2] < 0.7 * none[2]
    assert full[2] < 0.4 * none[2]


def test_the_recomputed_layers_are_evenly_spread() -> None:
    assert recomputed_layers(6, ratio=0.0) == []
    assert recomputed_layers(6, ratio=0.5) == [1, 3, 5]
    assert recomputed_layers(7, ratio=0.3) == [3, 6]
    assert recomputed_layers(6, ratio=1.0) == [0, 1, 2, 3, 4, 5]


def test_compiled_layers_compute_the_same_again(tmp_path) -> None:
    folder = tiny.save_random_model(tmp_path, "qwen3_tied")
    results = []
    for ratio in (0.0, 1.0):
        torch.compiler.reset()
        model = tiny.built(folder, fsdp_cfg=FSDPConfig(recompute_ratio=ratio))
        for layer in model.model.layers:
            # Traced, split into forward and backward, and run as it is: the C++ compiler takes a minute.
            layer.compile(backend="aot_eager")
        loss = model(tiny.pack(tiny.documents([12, 20])))
        loss.backward()
        results.append((loss.detach(), tiny.gradients(model)))
    (loss, gradients), (recomputed_loss, recomputed) = results
    torch.testing.assert_close(recomputed_loss, loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=1e-6 * largest, msg=name)
