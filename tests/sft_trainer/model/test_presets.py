"""Each preset against the published model, on the meta device."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sftjob.presets import PRESETS

# As the models' pages give them: a tied head is counted once.
PARAMETERS = {
    "Qwen2Dense7B": 7_615_616_512,
    "Qwen3Dense0P6B": 596_049_920,
    "Qwen3Dense4B": 4_022_468_096,
    "Qwen3Dense8B": 8_190_735_360,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters_and_rotary_base(name: str) -> None:
    fields = PRESETS[name]().hf_config()
    architecture = fields["architectures"]
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert [type(model).__name__] == architecture
