"""What an export holds, for who loads it: transformers alone."""

import json
from collections import Counter
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sft_trainer.model import Qwen3DenseConfig, export, get_model_config_from_hf
from sft_trainer.model.export import export_model

NOTHING = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": set()}


def _exported(model: torch.nn.Module, folder: Path, *, source: str | None, tokenizer: Path, **options: str) -> dict:
    """Its config.json."""
    export_model(model, folder, source=source, tokenizer_path=str(tokenizer), **options)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {kind: set(keys) for kind, keys in info.items()} == NOTHING
    for name, tensor in loaded.state_dict().items():
        ours = model.state_dict()[name]
        assert torch.equal(tensor, ours.to(tensor.dtype)), name
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", tiny.MODELS)
def test_weights_come_out_as_they_were_trained(name: str, tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path / "source", name)
    model = tiny.built(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    _exported(model, tmp_path / "out", source=source, tokenizer=tmp_path)
    # The layout of the source: experts one by one, nothing that is tied.
    kept = load_file(Path(source) / "model.safetensors")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == kept.keys()


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_bf16_model_comes_out_in_bf16_and_says_so(key: str, tmp_path: Path) -> None:
    source = Path(tiny.save_random_model(tmp_path / "source", "qwen3_tied", dtype=torch.bfloat16))
    fields = json.loads((source / "config.json").read_text())
    fields[key] = fields.pop("dtype")
    (source / "config.json").write_text(json.dumps(fields))
    model = tiny.built(str(source))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    written = _exported(model, tmp_path / "out", source=str(source), tokenizer=tmp_path)
    assert written == fields
    assert written[key] == "bfloat16"
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_routers_of_a_bf16_model_come_out_in_fp32_as_they_came(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path / "source", "ernie4_5_moe", dtype=torch.bfloat16)
    written = _exported(tiny.built(source), tmp_path / "out", source=source, tokenizer=tmp_path)
    assert written["dtype"] == "bfloat16"
    kept, tensors = (load_file(folder / "model.safetensors") for folder in (Path(source), tmp_path / "out"))
    in_fp32 = {name.removeprefix("model.layers.0.mlp.") for name in kept if kept[name].dtype == torch.float32}
    assert in_fp32 >= {"gate.weight", "moe_statics.e_score_correction_bias"}
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {name: kept[name].dtype for name in kept}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize(("dtype", "written", "stored"), [("bf16", "bfloat16", {"BF16"}), ("fp32", "float32", {"F32"})])
def test_a_dtype_that_is_asked_for_replaces_the_sources(
    dtype: str, written: str, stored: set[str], tmp_path: Path
) -> None:
    of_source = torch.float32 if dtype == "bf16" else torch.bfloat16
    source = tiny.save_random_model(tmp_path / "source", "llama", dtype=of_source)
    fields = _exported(tiny.built(source), tmp_path / "out", source=source, tokenizer=tmp_path, dtype=dtype)
    assert fields["dtype"] == written
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == stored  # noqa: SIM118


def test_a_model_from_scratch_comes_out_in_fp32_and_complete(tmp_path: Path) -> None:
    preset = Qwen3DenseConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    written = _exported(tiny.built(None, config=preset), tmp_path / "out", source=None, tokenizer=tmp_path)
    assert (written["dtype"], written["architectures"]) == ("float32", ["Qwen3ForCausalLM"])


def test_dropped_layers_are_dropped_from_the_configuration_too(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path / "source", "qwen3_tied")
    fields = get_model_config_from_hf(source).fields
    preset = Qwen3DenseConfig(
        **{name: fields[name] for name in Qwen3DenseConfig.model_fields if name in fields} | {"num_hidden_layers": 1},
        rope_theta=10000.0,
    )
    written = _exported(tiny.built(source, config=preset), tmp_path / "out", source=source, tokenizer=tmp_path)
    assert (written["num_hidden_layers"], written["layer_types"]) == (1, ["full_attention"])


def test_a_large_model_is_split_and_the_index_covers_every_tensor_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MAX_SHARD_BYTES", 10_000)
    source = tiny.save_random_model(tmp_path / "source", "qwen3_moe")
    _exported(tiny.built(source), tmp_path / "out", source=source, tokenizer=tmp_path)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = Counter()
    for file in (tmp_path / "out").glob("*.safetensors"):
        names = load_file(file).keys()
        held.update(names)
        assert {index["weight_map"][name] for name in names} == {file.name}
    assert len(set(index["weight_map"].values())) > 2
    assert held == Counter(index["weight_map"].keys())


def test_tokenizer_chat_template_and_generation_config_are_copied_as_they_are(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path / "source", "llama")
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt", "notes.txt"):
        (tokenizer / name).write_text(f"content of {name}\n")
    (tokenizer / "additional_chat_templates").mkdir()
    (tokenizer / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    (tmp_path / "source" / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": true}')
    _exported(tiny.built(source), tmp_path / "out", source=source, tokenizer=tokenizer)
    assert (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").read_text() == "with tools"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "additional_chat_templates",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"):
        assert (tmp_path / "out" / name).read_text() == f"content of {name}\n"
    assert (tmp_path / "out" / "generation_config.json").read_text() == '{"temperature": 0.6, "do_sample": true}'


def test_a_chat_template_that_was_trained_with_replaces_the_tokenizers(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path / "source", "llama")
    (tmp_path / "chat_template.jinja").write_text("old")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("old, with tools")
    _exported(tiny.built(source), tmp_path / "out", source=source, tokenizer=tmp_path, chat_template="new")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "new"
    assert not (tmp_path / "out" / "additional_chat_templates").exists()
