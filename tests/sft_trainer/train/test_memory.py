"""The estimate of a rank's memory against the tensors that a step really makes."""

import pytest
import torch

from sft_trainer.train.checkpoint import create_optimizer_state
from sft_trainer.train.memory import estimate_memory, memory_line
from sft_trainer.train.optimizer import build_optimizer
from sftjob.options import AdamWConfig, CELossConfig, FSDPConfig, LoRAConfig
from tests.sft_trainer.model import tiny_models as tiny

TOKENS = 192
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "num_attention_heads": 8}


def kept_bytes(model: torch.nn.Module) -> tuple[torch.Tensor, int]:
    """Loss, and what autograd keeps for the backward besides weights and the loss's own gradients."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape != model.get_output_embeddings().weight.shape:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tiny.pack(tiny.documents([TOKENS // 2, TOKENS // 2])))
    return loss, sum(kept.values())


@pytest.mark.parametrize("case", ["llama", "qwen3_tied", "mistral"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_the_estimate_is_what_a_step_makes(case: str, ratio: float, tmp_path) -> None:
    fsdp_cfg, loss_cfg = FSDPConfig(recompute_ratio=ratio), CELossConfig(chunk_size=48)
    folder = tiny.save_random_model(tmp_path, case, **SIZES | ({"sliding_window": 512} if case == "mistral" else {}))
    model = tiny.built(folder, fsdp_cfg=fsdp_cfg, loss_cfg=loss_cfg)
    optim_cfg = AdamWConfig(moments="bf16" if case == "llama" else "fp32")
    optimizer = build_optimizer(model, optim_cfg)
    create_optimizer_state(model, optimizer)
    estimate = estimate_memory(
        model, pack_tokens=TOKENS, precision="fp32", loss_cfg=loss_cfg, fsdp_cfg=fsdp_cfg, optim_cfg=optim_cfg
    )
    loss, kept = kept_bytes(model)
    loss.backward()
    parameters = list(model.parameters())
    assert estimate.weights == sum(parameter.nbytes for parameter in parameters)
    assert estimate.gradients == sum(parameter.grad.nbytes for parameter in parameters)
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert estimate.moments == sum(moment.nbytes for moment in moments)
    whole_again = 0
    if ratio:
        plain, recomputed = (tiny.built(folder, fsdp_cfg=FSDPConfig(recompute_ratio=r)) for r in (0.0, 1.0))
        whole_again = (kept_bytes(plain)[1] - kept_bytes(recomputed)[1]) // SIZES["num_hidden_layers"]
    # The rest is outside of the layers, and the few numbers that a norm and the attention keep of each row.
    lowest = 0.95 if ratio < 1 else 0.91
    assert lowest * (kept + whole_again) < estimate.activations <= kept + whole_again
    # 48 rows of 96 logits, whose place their gradient takes, and the head's [96, 64], in fp32.
    assert estimate.logits == 48 * 96 * 4 + 96 * 64 * 4


def test_layers_of_another_form_are_not_guessed(tmp_path) -> None:
    model = tiny.built(tiny.save_random_model(tmp_path, "qwen3_moe"))
    estimate = estimate_memory(
        model, pack_tokens=9, precision="fp32", loss_cfg=CELossConfig(), fsdp_cfg=FSDPConfig(), optim_cfg=AdamWConfig()
    )
    assert estimate.activations is None
    assert "activations unknown" in memory_line(estimate)


def test_frozen_weights_have_neither_gradient_nor_moments(tmp_path) -> None:
    model = tiny.built(tiny.save_random_model(tmp_path, "llama"))
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    estimate = estimate_memory(
        model, pack_tokens=9, precision="fp32", loss_cfg=CELossConfig(), fsdp_cfg=FSDPConfig(), optim_cfg=AdamWConfig()
    )
    # A norm of 32 in fp32; no sum of the head's gradients, 9 rows of 96 logits.
    assert (estimate.gradients, estimate.moments, estimate.logits) == (128, 256, 9 * 96 * 4)


def test_lora_is_counted_as_a_step_makes_it(tmp_path) -> None:
    model = tiny.built(tiny.save_random_model(tmp_path, "llama"), lora_cfg=LoRAConfig(rank=4, dora=True))
    optimizer = build_optimizer(model, AdamWConfig())
    create_optimizer_state(model, optimizer)
    estimate = estimate_memory(
        model, pack_tokens=9, precision="fp32", loss_cfg=CELossConfig(), fsdp_cfg=FSDPConfig(), optim_cfg=AdamWConfig()
    )
    model(tiny.pack(tiny.documents([9]))).backward()
    # Two layers of seven modules (32 wide, 48 inside, keys and values 16), each with A, B and the rows' lengths.
    shapes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
    adapters = 2 * sum(4 * (inputs + outputs) + outputs for inputs, outputs in shapes)
    assert estimate.gradients == 4 * adapters
    assert sum(p.grad.nbytes for p in model.parameters() if p.grad is not None) == 4 * adapters
    assert estimate.moments == 8 * adapters
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert sum(moment.nbytes for moment in moments) == 8 * adapters
    assert estimate.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert estimate.activations is not None
