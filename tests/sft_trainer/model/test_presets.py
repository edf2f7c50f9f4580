"""Each preset against the published model, on the meta device."""

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from sft_trainer import model as model_package
from sftjob.presets import PRESETS

# As the models' pages give them: a tied head is counted once.
PARAMETERS = {
    "Qwen2Dense0P5B": 494_032_768,
    "Qwen2Dense1P5B": 1_543_714_304,
    "Qwen2Dense3B": 3_085_938_688,
    "Qwen2Dense7B": 7_615_616_512,
    "Qwen2Dense14B": 14_770_033_664,
    "Qwen2Dense32B": 32_763_876_352,
    "Qwen2Dense72B": 72_706_203_648,
    "Qwen3Dense0P6B": 596_049_920,
    "Qwen3Dense1P7B": 1_720_574_976,
    "Qwen3Dense4B": 4_022_468_096,
    "Qwen3Dense8B": 8_190_735_360,
    "Qwen3Dense14B": 14_768_307_200,
    "Qwen3Dense32B": 32_762_123_264,
    "Qwen3MoE30BA3": 30_532_122_624,
    "Qwen3MoE235BA22": 235_093_634_560,
    "Llama3Dense8B": 8_030_261_248,
    "Llama3Dense70B": 70_553_706_496,
    "Llama3P1Dense8B": 8_030_261_248,
    "Llama3P1Dense70B": 70_553_706_496,
    "Llama3P1Dense405B": 405_853_388_800,
    "Llama3P2Dense1B": 1_235_814_400,
    "Llama3P2Dense3B": 3_212_749_824,
    "MistralDense7B": 7_248_023_552,
    "MistralDense12B": 12_247_782_400,
    "MistralDense24B": 23_572_403_200,
    "MistralDense123B": 122_610_069_504,
}
ROTARY_BASES = {"Qwen2": 1e6, "Qwen3": 1e6, "Llama3": 5e5, "Mistral": 1e6, "MistralDense24B": 1e8}
LLAMA_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALINGS = {"Llama3P1": LLAMA_SCALING | {"factor": 8.0}, "Llama3P2": LLAMA_SCALING | {"factor": 32.0}}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters_and_rotary_embedding(name: str) -> None:
    fields = PRESETS[name]().hf_config()
    architecture = fields["architectures"]
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    base = [base for prefix, base in ROTARY_BASES.items() if name.startswith(prefix)][-1]
    scaling = next((scaling for prefix, scaling in SCALINGS.items() if name.startswith(prefix)), None)
    assert config.rope_parameters == (scaling or {"rope_type": "default"}) | {"rope_theta": base}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert [type(model).__name__] == architecture


def test_no_preset_has_a_window_or_leaves_its_experts_unlike_the_published_ones() -> None:
    for name, preset in PRESETS.items():
        fields = preset().hf_config()
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        assert getattr(config, "sliding_window", None) is None, name
    mixture = PRESETS["Qwen3MoE30BA3"]()
    assert (mixture.num_experts, mixture.num_experts_per_tok, mixture.norm_topk_prob) == (128, 8, True)


def test_every_preset_is_a_class_of_the_package_and_overridable_field_by_field() -> None:
    for name in PRESETS:
        assert getattr(model_package, f"{name}Config") is PRESETS[name]
    mixture = model_package.Qwen3MoE30BA3Config(
        num_hidden_layers=2, num_experts=4, num_experts_per_tok=2, norm_topk_prob=False
    )
    fields = mixture.hf_config()
    assert (fields["num_hidden_layers"], fields["num_experts"], fields["norm_topk_prob"]) == (2, 4, False)
    assert fields["hidden_size"] == 2048
    plain = model_package.Llama3P1Dense8BConfig(rope_scaling=None, rope_theta=1e4).hf_config()
    assert plain["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e4}


def test_counts_that_do_not_fit_are_refused_where_the_class_is_called() -> None:
    with pytest.raises(ValidationError, match="num_key_value_heads: 2 does not divide the 5 of num_attention_heads;"):
        model_package.Qwen3Dense8BConfig(num_attention_heads=5, num_key_value_heads=2)
    with pytest.raises(ValidationError, match="num_experts_per_tok: 8 is more than the 2 of num_experts; change one"):
        model_package.Qwen3MoE30BA3Config(num_experts=2)
