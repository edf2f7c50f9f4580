"""What AdamW's weight decay pulls at."""

from pathlib import Path

import pytest

from sft_trainer.train.optimizer import build_optimizer
from sftjob.options import AdamWConfig, LoRAConfig
from tests.sft_trainer.model import tiny_models as tiny

LAYER = "model.layers.0."
NORMS = [LAYER + "input_layernorm.weight", LAYER + "post_attention_layernorm.weight", "model.norm.weight"]
ATTENTION = [f"{LAYER}self_attn.{part}_proj" for part in "qkvo"]


@pytest.mark.parametrize(
    ("case", "spared"),
    [
        ("llama", NORMS),
        (
            "llama_with_biases",
            [
                *NORMS,
                *(f"{name}.bias" for name in [*ATTENTION, *(f"{LAYER}mlp.{p}_proj" for p in ("gate", "up", "down"))]),
            ],
        ),
        ("qwen3_moe", [*NORMS, LAYER + "self_attn.q_norm.weight", LAYER + "self_attn.k_norm.weight"]),
        (
            "gpt_oss",
            [
                *NORMS,
                *(f"{name}.bias" for name in ATTENTION),
                LAYER + "self_attn.sinks",
                LAYER + "mlp.router.bias",
                # Matrices: a bias for each expert.
                LAYER + "mlp.experts.gate_up_proj_bias",
                LAYER + "mlp.experts.down_proj_bias",
            ],
        ),
    ],
)
def test_all_but_norms_biases_and_sinks_is_decayed(case: str, spared: list[str], tmp_path: Path) -> None:
    model = tiny.built(tiny.save_random_model(tmp_path, case, num_hidden_layers=1, layer_types=["full_attention"]))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, others = build_optimizer(model, AdamWConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert sorted(names[parameter] for parameter in others["params"]) == sorted(spared)
    assert len(decayed["params"]) + len(spared) == len(names)


def test_of_lora_the_adapters_are_decayed(tmp_path: Path) -> None:
    model = tiny.built(tiny.save_random_model(tmp_path, "llama"), lora_cfg=LoRAConfig(rank=4))
    decayed, others = build_optimizer(model, AdamWConfig()).param_groups
    assert (len(decayed["params"]), len(others["params"])) == (2 * 7 * 2, 0)
