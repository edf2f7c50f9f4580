"""Says which of the library's private calls moved, when its pinned version is raised."""

import inspect

import pytest
import transformers
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, build_glob_alternation, revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import LoadStateDictConfig
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from sft_trainer.model.attention import NAME, register

PARAMETERS = {
    PreTrainedModel._load_pretrained_model: ["model", "state_dict", "checkpoint_files", "load_config", "expected_keys"],
    PreTrainedModel._finalize_model_loading: ["model", "load_config", "loading_info"],
    PreTrainedModel._adjust_missing_and_unexpected_keys: ["self", "loading_info"],
    PreTrainedModel._get_dtype_plan: ["self", "dtype"],
    PreTrainedModel._init_weights: ["self", "module"],
    build_glob_alternation: ["globs"],
    PreTrainedModel.tie_weights: ["self", "missing_keys", "recompute_mapping"],
    PreTrainedModel.set_attn_implementation: ["self", "attn_implementation", "allow_all_kernels"],
    get_model_conversion_mapping: ["model", "key_mapping", "hf_quantizer", "add_legacy"],
    revert_weight_conversion: ["model", "state_dict"],
    Bnb4BitHfQuantizer.param_needs_quantization: ["self", "model", "param_name", "kwargs"],
    Bnb4BitHfQuantizer.get_quantize_ops: ["self"],
    ConversionOps.convert: ["self", "input_dict", "source_patterns", "target_patterns", "kwargs"],
}


def test_the_version_is_the_one_that_these_calls_were_read_in() -> None:
    assert transformers.__version__ == "5.24.0"


@pytest.mark.parametrize("call", PARAMETERS, ids=lambda call: call.__name__)
def test_a_private_call_takes_what_it_took(call: object) -> None:
    assert list(inspect.signature(call).parameters) == PARAMETERS[call]


def test_the_loader_is_configured_by_the_fields_it_had() -> None:
    assert {"device_map", "dtype", "weight_mapping", "hf_quantizer"} <= {
        f for f in inspect.signature(LoadStateDictConfig).parameters
    }


def test_a_model_says_what_is_tied_and_what_its_layers_and_its_attention_are() -> None:
    register()
    config = transformers.AutoConfig.for_model(
        "qwen3", vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
    assert model.all_tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}
    assert model.config._attn_implementation == NAME
    assert isinstance(model.model.layers[0], GradientCheckpointingLayer)
