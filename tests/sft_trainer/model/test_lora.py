"""LoRA against peft itself, which loads what we write and adapts transformers' own models."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sft_trainer.model.export import export_adapter, export_model
from sft_trainer.model.probe import probe
from sftjob.failure import JobFailure, Reason
from sftjob.options import FSDPConfig, LoRAConfig

ALL_LINEAR = LoRAConfig(rank=4, alpha=12)
KINDS = {
    "plain": ("llama", ALL_LINEAR),
    "biases": ("llama_with_biases", ALL_LINEAR),
    "tied": ("qwen3_tied", ALL_LINEAR),
    "experts": ("qwen3_moe", ALL_LINEAR),
    "transposed": ("gpt2", LoRAConfig(rank=4, dora=True)),
    "rslora": ("qwen3_tied", LoRAConfig(rank=9, rslora=True, target_modules=["q_proj", "mlp.up_proj"])),
    "dora": ("llama", LoRAConfig(rank=4, dora=True)),
    "whole modules": ("llama", LoRAConfig(rank=4, modules_to_save=["embed_tokens", "lm_head", "input_layernorm"])),
}
TEXTS = tiny.documents([9, 13])


def _trained(folder: str, config: LoRAConfig, *, steps: int = 4, **options: Any) -> tuple[torch.nn.Module, list[float]]:
    """The model, and its loss before each step."""
    model = tiny.built(folder, lora_cfg=config, **options)
    probe(model, vocab_size=tiny.VOCAB_SIZE)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        loss = model(tiny.pack(TEXTS))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


def _in_peft(folder: str, adapter: Path, **options: Any) -> PeftModel:
    return PeftModel.from_pretrained(tiny.transformers_model(folder), adapter, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_the_same_model_in_peft_and_merges_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    case, config = KINDS[kind]
    source = tiny.save_random_model(tmp_path / "base", case)
    model, losses = _trained(source, config)
    untouched = tiny.built(source)(tiny.pack(TEXTS)).item()
    assert losses[0] == pytest.approx(untouched, rel=1e-6)
    assert losses[-1] < 0.9 * losses[0]

    export_adapter(model, tmp_path / "adapter", base=source, tokenizer_path=source)
    adapted = _in_peft(source, tmp_path / "adapter")
    logits = model.eval()(tiny.pack(TEXTS), output="logits")[0].split([len(text) for text in TEXTS])
    for ours, text in zip(logits, TEXTS, strict=True):
        torch.testing.assert_close(ours, adapted(text.unsqueeze(0)).logits[0], rtol=1e-5, atol=1e-5)

    export_model(model, tmp_path / "merged", source=source, tokenizer_path=source)
    ours, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    base, theirs = tiny.transformers_model(source).state_dict(), adapted.merge_and_unload().state_dict()
    assert ours.state_dict().keys() == theirs.keys() == base.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    # The export has changed nothing of the model.
    assert torch.equal(model.eval()(tiny.pack(TEXTS), output="logits")[0], torch.cat(logits))
    # Only what was asked for has changed.
    changed = {name for name in base if not torch.equal(base[name], theirs[name])}
    if kind == "rslora":
        assert changed == {
            f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")
        }
    elif kind == "experts":
        assert changed == {
            f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in (0, 1) for name in ("q", "k", "v", "o")
        }
    elif kind == "whole modules":
        assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.input_layernorm.weight"} < changed
        assert len(changed) == 2 + 2 + 2 * 7
    elif kind in ("plain", "dora", "tied"):
        assert len(changed) == 2 * 7


@pytest.mark.parametrize("kind", ["plain", "dora", "rslora"])
def test_gradients_are_those_of_peft(kind: str, tmp_path: Path) -> None:
    case, config = KINDS[kind]
    source = tiny.save_random_model(tmp_path / "base", case)
    model, _ = _trained(source, config, steps=2)
    export_adapter(model, tmp_path / "adapter", base=source, tokenizer_path=source)
    model(tiny.pack(TEXTS)).backward()
    adapted = _in_peft(source, tmp_path / "adapter", is_trainable=True)
    for text in TEXTS:
        logits = adapted(text.unsqueeze(0)).logits[0]
        F.cross_entropy(logits, tiny.next_tokens(text), ignore_index=-100, reduction="sum").backward()
    theirs = {name.removeprefix("base_model.model."): p.grad for name, p in adapted.named_parameters()}
    ours = tiny.gradients(model)
    assert ours.keys() == theirs.keys()
    assert sum(gradient is not None for gradient in ours.values()) >= 8
    for name, gradient in theirs.items():
        if gradient is None:
            assert ours[name] is None, name
        else:
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_an_adapters_folder_says_what_it_belongs_to(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path / "base", "llama")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    model, _ = _trained(source, LoRAConfig(rank=4, modules_to_save=["lm_head"]), steps=1)
    export_adapter(
        model,
        tmp_path / "adapter",
        base="hub/base",
        revision="abc",
        tokenizer_path=source,
        chat_template="the template",
    )
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
    }
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    names = ("peft_type", "task_type", "base_model_name_or_path", "revision", "r", "lora_alpha")
    told = {name: written[name] for name in names}
    assert told == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "hub/base",
        "revision": "abc",
        "r": 4,
        "lora_alpha": 32,
    }
    assert written["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert written["inference_mode"] is True
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    # A and B of seven modules in each of two layers, and the head.
    assert len(tensors) == 2 * 7 * 2 + 1
    assert "base_model.model.lm_head.weight" in tensors
    assert "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight" in tensors


def test_recomputed_layers_give_the_same_bits(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path, "llama")
    plain, recomputed = (
        _trained(source, KINDS["dora"][1], fsdp_cfg=FSDPConfig(recompute_ratio=ratio))[0] for ratio in (0.0, 1.0)
    )
    for name, tensor in plain.state_dict().items():
        assert torch.equal(recomputed.state_dict()[name], tensor), name


def test_the_seed_is_that_of_the_adapters(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path, "llama")
    first, again, other = (tiny.built(source, lora_cfg=ALL_LINEAR, seed=seed).state_dict() for seed in (1, 1, 2))
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert len(differing) == 2 * 7
    assert all(name.endswith("lora_A.default.weight") for name in differing)


@pytest.mark.parametrize(("case", "head"), [("llama", torch.bfloat16), ("qwen3_tied", torch.float32)])
def test_a_bf16_base_is_held_in_bf16_and_gives_the_numbers_of_one_in_fp32(
    case: str, head: torch.dtype, tmp_path: Path
) -> None:
    """A tied head is the embedding, which is held in fp32."""
    source = tiny.save_random_model(tmp_path / "bf16", case, dtype=torch.bfloat16)
    adapted = tiny.built(source, precision="bf16", lora_cfg=ALL_LINEAR)
    frozen = {name: p.dtype for name, p in adapted.named_parameters() if not p.requires_grad}
    assert frozen["model.layers.0.mlp.up_proj.base_layer.weight"] == torch.bfloat16
    assert frozen["model.embed_tokens.weight"] == torch.float32
    assert adapted.get_output_embeddings().weight.dtype == head
    assert {parameter.dtype for parameter in adapted.parameters() if parameter.requires_grad} == {torch.float32}
    whole = tiny.built(source, precision="bf16")
    assert torch.equal(adapted(tiny.pack(TEXTS)), whole(tiny.pack(TEXTS)))
    # In fp32 nothing is rounded, and what came in fp32 is kept.
    assert {p.dtype for p in tiny.built(source, lora_cfg=ALL_LINEAR).parameters()} == {torch.float32}
    fp32 = tiny.save_random_model(tmp_path / "fp32", case)
    model = tiny.built(fp32, precision="bf16", lora_cfg=ALL_LINEAR)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_routers_beside_a_bf16_base_stay_in_fp32(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path, "ernie4_5_moe", dtype=torch.bfloat16)
    adapted = tiny.built(source, precision="bf16", lora_cfg=LoRAConfig(target_modules=["q_proj", "v_proj"]))
    frozen = {name: p.dtype for name, p in adapted.named_parameters() if not p.requires_grad}
    assert frozen["model.layers.1.mlp.experts.down_proj"] == torch.bfloat16
    assert frozen["model.layers.1.mlp.gate.weight"] == torch.float32
    assert frozen["model.layers.1.mlp.gate.moe_statics.e_score_correction_bias"] == torch.float32
    whole = tiny.built(source, precision="bf16")
    assert torch.equal(adapted(tiny.pack(TEXTS)), whole(tiny.pack(TEXTS)))


ALL_OF_LLAMA = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
TIED = "shares its weight (lm_head and model.embed_tokens are tied), and a merged model could not keep both"


@pytest.mark.parametrize(
    ("case", "fields", "said"),
    [
        (
            "llama",
            {"target_modules": ["q_proj", "qproj"]},
            f"targetModules: qproj is no linear module of a llama model; use some of {ALL_OF_LLAMA}",
        ),
        ("llama", {"target_modules": ["mlp"]}, "targetModules: mlp is no linear module of a llama model; use"),
        ("llama", {"target_modules": ["lm_head"]}, "targetModules: lm_head has no adapter here; train it whole, with"),
        ("qwen3_tied", {"target_modules": ["lm_head"]}, f"targetModules: lm_head {TIED}; leave it out"),
        ("qwen3_tied", {"target_modules": ["embed_tokens"]}, f"targetModules: embed_tokens {TIED}; leave it out"),
        ("qwen3_tied", {"modules_to_save": ["embed_tokens"]}, f"modulesToSave: embed_tokens {TIED}; leave it out"),
        ("qwen3_tied", {"modules_to_save": ["lm_head"]}, f"modulesToSave: lm_head {TIED}; leave it out"),
        (
            "llama",
            {"modules_to_save": ["head"]},
            "modulesToSave: head is no module with weights of a llama model; use some of embed_tokens, lm_head, norm",
        ),
        ("llama", {"modules_to_save": ["rotary_emb"]}, "modulesToSave: rotary_emb is no module with weights of a"),
        ("llama", {"modules_to_save": ["model"]}, "modulesToSave: model holds whole layers; leave lora out to train"),
        (
            "llama",
            {"modules_to_save": ["self_attn", "mlp"]},
            "modulesToSave: self_attn, mlp leaves nothing to adapt; name fewer modules",
        ),
        (
            "qwen3_moe",
            {"target_modules": ["q_proj"], "modules_to_save": ["q_proj"]},
            "modulesToSave: q_proj leaves nothing to adapt; name fewer modules",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(case: str, fields: dict, said: str, tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path, case)
    with pytest.raises(JobFailure) as refused:
        tiny.built(source, lora_cfg=LoRAConfig(**fields))
    assert refused.value.reason is Reason.INVALID_CONFIGURATION
    assert refused.value.message.startswith(f"spec.training.lora.{said}")


def test_dense_layers_that_peft_takes_for_experts_are_refused(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path, "qwen3_moe", mlp_only_layers=[0])
    with pytest.raises(JobFailure, match="down_proj, gate_proj, up_proj would adapt the experts of a qwen3_moe model"):
        tiny.built(source, lora_cfg=ALL_LINEAR)
    tiny.built(source, lora_cfg=LoRAConfig(target_modules=["q_proj"]))
