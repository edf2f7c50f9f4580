"""Weights that are held in bf16 between updates, against torch's own autocast."""

from pathlib import Path

import pytest
import tiny_models as tiny
import torch

from sft_trainer.model import bf16_weights
from sftjob.options import FSDPConfig

CASES = ["qwen2", "qwen3_tied", "qwen3_moe", "gemma2", "gpt_oss"]


def _losses_and_state(folder: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Of three updates, each of two micro-batches of other lengths."""
    model = tiny.built(folder, precision="bf16")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    losses = []
    for update in range(3):
        for micro_batch in range(2):
            loss = model(tiny.pack(tiny.documents([5 + update, 9 + micro_batch])))
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses, model.state_dict()


@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_autocast_to_the_bit(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save_random_model(tmp_path, case)
    losses, weights = _losses_and_state(folder)
    monkeypatch.setattr(bf16_weights._Linear, "forward", torch.nn.Linear.forward)
    expected_losses, expected = _losses_and_state(folder)
    assert losses == expected_losses
    assert len(set(losses)) == len(losses)
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


def test_weights_that_are_loaded_or_replaced_are_used(tmp_path: Path) -> None:
    first, second = (
        tiny.built(tiny.save_random_model(tmp_path / str(seed), "llama", initializer_range=spread), precision="bf16")
        for seed, spread in enumerate([0.15, 0.3])
    )
    batch = tiny.pack(tiny.documents([9, 13]))
    expected = second(batch).item()
    assert first(batch).item() != expected
    first.load_state_dict(second.state_dict())
    assert first(batch).item() == expected
    down_proj = second.get_submodule("model.layers.1.mlp.down_proj")
    down_proj.weight = torch.nn.Parameter(2 * down_proj.weight)
    assert second(batch).item() != expected


@pytest.mark.parametrize(
    ("fsdp_cfg", "held"),
    [({}, 2), ({"recompute_ratio": 0.5}, 1), ({"recompute_ratio": 1.0}, 0), ({"recompute_selectively": True}, 0)],
)
def test_layers_that_are_recomputed_hold_none(fsdp_cfg: dict, held: int, tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, "llama")
    model = tiny.built(folder, precision="bf16", fsdp_cfg=FSDPConfig(**fsdp_cfg))
    model(tiny.pack(tiny.documents([9, 13])))
    layers = [module for module in model.modules() if isinstance(module, bf16_weights._Linear)]
    assert len(layers) == 7 * held
    assert {layer.__dict__["bf16_weight"].dtype for layer in layers} <= {torch.bfloat16}
