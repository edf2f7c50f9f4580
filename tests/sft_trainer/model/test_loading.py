"""Presets, folders and overrides; and what a folder that is wrong gets: one sentence, at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sft_trainer.model import (
    Llama3Dense8BConfig,
    Llama3P1Dense8BConfig,
    ModelConfig,
    Qwen3Dense8BConfig,
    Qwen3DenseConfig,
    Qwen3MoE30BA3Config,
    get_model_config_from_hf,
)
from sft_trainer.model.config import trained_config, transformers_config
from sftjob.failure import JobFailure, Reason

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

LLAMA31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


class TinyQwen3(Qwen3DenseConfig):
    """The preset of the folder that the tests below read."""

    vocab_size: int = Field(default=96)
    hidden_size: int = Field(default=32)
    intermediate_size: int = Field(default=48)
    num_hidden_layers: int = Field(default=2)
    num_attention_heads: int = Field(default=4)
    num_key_value_heads: int = Field(default=2)
    head_dim: int = Field(default=8)
    rope_theta: float = Field(default=10000.0)
    tie_word_embeddings: bool = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(tiny.save_random_model(tmp_path / "model", "qwen3_tied"))


def _edit_json(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _refusal(reason: Reason, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(JobFailure) as caught:
        tiny.built(*arguments, **keywords)
    assert caught.value.reason is reason
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_preset_fits_the_published_configuration_which_is_kept_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    assert trained_config(Qwen3Dense8BConfig(), load_from=str(tmp_path)) == QWEN3_8B


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        (
            Qwen3MoE30BA3Config(),
            QWEN3_8B
            | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048}
            | {"intermediate_size": 6144, "num_hidden_layers": 48, "num_key_value_heads": 4, "mlp_only_layers": []}
            | {"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1}
            | {"moe_intermediate_size": 768, "output_router_logits": False, "router_aux_loss_coef": 0.001},
        ),
        (Llama3P1Dense8BConfig(), LLAMA31_8B),
    ],
    ids=["qwen3_moe", "llama3.1"],
)
def test_presets_of_other_classes_fit_theirs(preset: ModelConfig, published: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert trained_config(preset, load_from=str(tmp_path)) == published


def test_a_rotary_scaling_that_the_user_set_replaces_the_folders(tmp_path: Path) -> None:
    unscaled = Llama3P1Dense8BConfig(rope_scaling=None)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA31_8B))
    assert trained_config(unscaled, load_from=str(tmp_path)) == LLAMA31_8B | {"rope_scaling": None}
    newer = {name: value for name, value in LLAMA31_8B.items() if name not in ("rope_scaling", "rope_theta")}
    rope = {"rope_parameters": LLAMA31_8B["rope_scaling"] | {"rope_theta": 5e5}}
    (tmp_path / "config.json").write_text(json.dumps(newer | rope))
    assert trained_config(unscaled, load_from=str(tmp_path)) == newer | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}
    }
    with pytest.raises(JobFailure, match=r"rope_scaling is None in the preset and \{'factor': 8.0"):
        trained_config(Llama3Dense8BConfig(), load_from=str(tmp_path))


def test_infinity_in_a_configuration_is_read_as_the_library_writes_it(tmp_path: Path) -> None:
    AutoConfig.for_model("nemotron_h").save_pretrained(tmp_path)
    fields = get_model_config_from_hf(tmp_path).fields
    assert fields["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert list(transformers_config(fields, said_by="").time_step_limit) == [0.0, float("inf")]


def test_a_router_loss_is_refused_rather_than_left_out(tmp_path: Path) -> None:
    folder = Path(tiny.save_random_model(tmp_path, "qwen3_moe"))
    _edit_json(folder / "config.json", output_router_logits=True)
    message = _refusal(Reason.INVALID_CONFIGURATION, str(folder))
    assert message == (
        f"{folder}/config.json: output_router_logits asks for a router loss, which is not trained here; set it to false"
    )


def test_a_release_with_another_context_length_keeps_it(tmp_path: Path) -> None:
    published = QWEN3_8B | {"max_position_embeddings": 32768}
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert trained_config(Qwen3Dense8BConfig(), load_from=str(tmp_path)) == published


def test_a_field_that_the_user_set_replaces_the_folders_and_lists_by_layer_are_cut(tmp_path: Path) -> None:
    published = QWEN3_8B | {"layer_types": ["full_attention"] * 36}
    (tmp_path / "config.json").write_text(json.dumps(published))
    preset = Qwen3Dense8BConfig(num_hidden_layers=16, rope_theta=5e6)
    assert trained_config(preset, load_from=str(tmp_path)) == published | {
        "num_hidden_layers": 16,
        "rope_theta": 5e6,
        "layer_types": ["full_attention"] * 16,
    }


def test_a_field_set_by_the_user_reaches_the_model_wherever_the_file_has_it(folder: Path) -> None:
    assert "rope_parameters" in json.loads((folder / "config.json").read_text())
    model = tiny.built(str(folder), config=TinyQwen3(rope_theta=100.0, rms_norm_eps=0.5))
    # 8 / 2 frequencies: 100 ** (-2 i / 8).
    torch.testing.assert_close(
        model.model.rotary_emb.inv_freq, torch.tensor([1.0, 0.3162277660, 0.1, 0.0316227766]), rtol=1e-6, atol=0
    )
    assert model.model.norm.variance_epsilon == 0.5


def test_every_other_field_of_a_preset_has_to_agree_with_the_folder(folder: Path) -> None:
    _edit_json(folder / "config.json", rms_norm_eps=1e-5)
    message = _refusal(Reason.INVALID_CONFIGURATION, str(folder), config=Qwen3Dense8BConfig(num_hidden_layers=1))
    for field, preset, config in [
        ("vocab_size", 151936, 96),
        ("hidden_size", 4096, 32),
        ("intermediate_size", 12288, 48),
        ("num_attention_heads", 32, 4),
        ("num_key_value_heads", 8, 2),
        ("head_dim", 128, 8),
        ("rope_theta", 1000000.0, 10000.0),
        ("rms_norm_eps", 1e-06, 1e-05),
        ("tie_word_embeddings", False, True),
    ]:
        assert f"{field} is {preset} in the preset and {config} in {folder}/config.json" in message
    assert "num_hidden_layers" not in message
    assert "max_position_embeddings" not in message


def test_a_preset_of_another_model_type_is_refused(tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, "llama")
    message = _refusal(Reason.INVALID_CONFIGURATION, folder, config=TinyQwen3())
    assert message.startswith(f"model: a qwen3 model is configured, but {folder} holds a llama model")


def test_fewer_layers_than_the_folder_are_the_folders_first(folder: Path) -> None:
    whole = tiny.transformers_model(str(folder)).state_dict()
    model = tiny.built(str(folder), config=TinyQwen3(num_hidden_layers=1))
    assert len(model.model.layers) == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_besides_dropped_layers_nothing_unexpected_is_accepted(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"model.layers.0.extra": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    message = _refusal(Reason.MODEL_UNREADABLE, str(folder), config=TinyQwen3(num_hidden_layers=1))
    assert "; unexpected: model.layers.0.extra; " in message


def test_fewer_layers_in_config_json_alone_are_an_error(folder: Path) -> None:
    _edit_json(folder / "config.json", num_hidden_layers=1, layer_types=["full_attention"])
    message = _refusal(Reason.MODEL_UNREADABLE, str(folder))
    assert "unexpected: model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight" in message


def test_more_layers_in_config_json_than_in_the_weights_are_an_error(folder: Path) -> None:
    _edit_json(folder / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    message = _refusal(Reason.MODEL_UNREADABLE, str(folder))
    assert "missing: model.layers.2.input_layernorm.weight" in message
    assert "and 3 more" in message


def test_more_layers_than_the_folder_are_refused(folder: Path) -> None:
    message = _refusal(Reason.INVALID_CONFIGURATION, str(folder), config=TinyQwen3(num_hidden_layers=3))
    assert message == f"model: num_hidden_layers is 3, but {folder} has 2 layers; use as many or fewer"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", None, "config.json: missing; name a Hugging Face model folder"),
        ("config.json", b"{", "config.json: not JSON ("),
        ("config.json", b"\xff\xfe", "config.json: not JSON ("),
        ("config.json", b"[]", "config.json: no model_type in it"),
        ("config.json", b'{"model_type": "unheard"}', "config.json: transformers has no model type 'unheard'"),
        ("config.json", b'{"model_type": "qwen3", "quantization_config": {}}', "the weights are quantized"),
        ("config.json", b'{"model_type": "qwen3", "hidden_size": "wide"}', "not a valid qwen3 configuration ("),
        ("model.safetensors", None, "neither model.safetensors nor model.safetensors.index.json"),
        ("model.safetensors", b"", "model.safetensors: cut short or not safetensors ("),
        ("model.safetensors", b"\x08" + b"\0" * 7 + b"notjson!", "model.safetensors: cut short or not safetensors ("),
    ],
)
def test_a_folder_with_a_file_missing_or_broken_is_named_with_a_remedy(
    name: str, content: bytes | None, expected: str, folder: Path
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    message = _refusal(Reason.MODEL_UNREADABLE, str(folder))
    assert expected in message
    assert "; " in message


@pytest.mark.parametrize(
    ("adapter", "of"),
    [({"base_model_name_or_path": "Qwen/Qwen3-8B"}, "Qwen/Qwen3-8B"), ({}, "a model that it does not name")],
)
def test_an_adapter_is_told_as_one_with_its_base_and_what_to_train_on(adapter: dict, of: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | adapter))
    message = _refusal(Reason.MODEL_UNREADABLE, str(tmp_path))
    assert message == (
        f"{tmp_path}: is an adapter of {of}, and no model; train on from an output with format: hf, or merge it first "
        "with peft's merge_and_unload"
    )


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobFailure, match=r"absent: no such folder; name") as caught:
        get_model_config_from_hf(tmp_path / "absent")
    assert caught.value.reason is Reason.MODEL_UNREADABLE


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.999])
def test_truncated_safetensors_are_refused(kept: float, folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    assert f"{file}: cut short or not safetensors (" in _refusal(Reason.MODEL_UNREADABLE, str(folder))


def test_a_missing_shard_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(tensors)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = _refusal(Reason.MODEL_UNREADABLE, str(folder))
    assert "index.json: names files that are missing: b.safetensors; copy" in message


def _with_changed_weights(folder: Path, **changes: torch.Tensor | None) -> str:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return _refusal(Reason.MODEL_UNREADABLE, str(folder))


def test_missing_unexpected_and_misshapen_weights_are_listed(folder: Path) -> None:
    missing = _with_changed_weights(folder, **{"model.norm.weight": None, "model.extra.weight": torch.ones(2)})
    assert "missing: model.norm.weight; unexpected: model.extra.weight; use the config.json" in missing
    misshapen = _with_changed_weights(folder, **{"model.norm.weight": torch.ones(31)})
    assert "of another shape: model.norm.weight ([31], expected [32])" in misshapen


def test_a_tied_model_whose_embedding_is_missing_says_so(folder: Path) -> None:
    assert "missing: lm_head.weight, model.embed_tokens.weight" in _with_changed_weights(
        folder, **{"model.embed_tokens.weight": None}
    )


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(folder: Path) -> None:
    message = _with_changed_weights(folder, **{"lm_head.weight": torch.ones(96, 32)})
    assert message.startswith(f"{folder}/config.json: tie_word_embeddings is true, but the weights hold a head")


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    folder = Path(tiny.save_random_model(tmp_path, "qwen3_moe"))
    assert "weights do not fit" in _with_changed_weights(
        folder, **{"model.layers.1.mlp.experts.2.up_proj.weight": None}
    )


def test_from_scratch_the_seed_decides(folder: Path) -> None:
    config = get_model_config_from_hf(folder)
    first, same, other = (tiny.built(None, config=config, seed=seed).state_dict() for seed in (1, 1, 2))
    for name, tensor in first.items():
        assert torch.equal(tensor, same[name])
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", ["qwen3_tied", "gemma3_text", "qwen3_moe"])
def test_from_scratch_values_are_those_that_the_library_draws(name: str, tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, name)
    oracle = tiny.transformers_model(folder)
    for part in (*oracle.modules(), *oracle.parameters(), *oracle.buffers()):
        part._is_hf_initialized = False
    # As it is while the library builds it: tied only after both were drawn.
    oracle.lm_head.weight = torch.nn.Parameter(oracle.lm_head.weight.detach().clone())
    torch.manual_seed(11)
    oracle.initialize_weights()
    oracle.tie_weights()
    state = torch.get_rng_state()
    model = tiny.built(None, config=get_model_config_from_hf(folder))
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(model.named_buffers()).keys() == dict(oracle.named_buffers()).keys()
    for (key, ours), theirs in zip(model.state_dict().items(), oracle.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key
    for key, buffer in oracle.named_buffers():
        assert torch.equal(model.get_buffer(key), buffer), key


def test_tied_weights_are_one_parameter_and_untied_ones_two(tmp_path: Path) -> None:
    for name, tied in (("qwen3_tied", True), ("llama", False)):
        folder = tiny.save_random_model(tmp_path / name, name)
        for model in (tiny.built(folder), tiny.built(None, config=get_model_config_from_hf(folder))):
            assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
