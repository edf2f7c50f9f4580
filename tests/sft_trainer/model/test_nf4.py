"""QLoRA on a CPU, where the product refuses it: against bitsandbytes' own packing, and the dequantised model."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sft_trainer.model import nf4
from sft_trainer.model.build import model_on_meta
from sft_trainer.model.export import export_adapter, export_model
from sft_trainer.model.nf4 import Nf4Linear
from sft_trainer.model.probe import probe
from sft_trainer.train.flops import count_flops
from sft_trainer.train.memory import estimate_memory
from sftjob.failure import JobFailure, Reason
from sftjob.options import AdamWConfig, CELossConfig, FSDPConfig, LoRAConfig

QLORA = LoRAConfig(rank=4, alpha=12, quantize="nf4")
TEXTS = tiny.documents([9, 13])
# Blocks of 64 elements that end in the middle of a row, and a last one that isn't full.
ODD = {"hidden_size": 36, "intermediate_size": 50, "head_dim": 10, "num_attention_heads": 4}


@pytest.fixture(autouse=True)
def _offered_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "DEVICES", ("cuda", "cpu"))


def dequantised(source: str, folder: Path, *, dtype: torch.dtype) -> str:
    """The folder's model with every linear matrix of its layers packed and made whole again, by bitsandbytes alone."""
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            packed = quantize_4bit(tensor.to(dtype), quant_type="nf4", compress_statistics=True)
            tensors[name] = dequantize_4bit(*packed).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def _step(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = model(tiny.pack(TEXTS))
    loss.backward()
    return loss.detach(), {name: gradient for name, gradient in tiny.gradients(model).items() if gradient is not None}


def move_b(model: torch.nn.Module) -> None:
    """B begins as 0, where the gradient of A is 0 too."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.03)


@pytest.mark.parametrize("case", ["llama", "llama_with_biases", "qwen3_tied"])
@pytest.mark.parametrize("fields", [{}, {"dora": True, "rslora": True}, {"target_modules": ["q_proj", "down_proj"]}])
def test_loss_gradients_and_exports_are_those_of_the_dequantised_model(case: str, fields: dict, tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path / "base", case, **ODD)
    whole = dequantised(source, tmp_path / "whole", dtype=torch.float32)
    packed = tiny.built(source, lora_cfg=QLORA.model_copy(update=fields))
    reference = tiny.built(whole, lora_cfg=LoRAConfig(rank=4, alpha=12, **fields))
    probe(packed, vocab_size=tiny.VOCAB_SIZE)
    for model in (packed, reference):
        move_b(model)
    (loss, gradients), (expected_loss, expected) = _step(packed), _step(reference)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert loss != tiny.built(source)(tiny.pack(TEXTS))

    export_adapter(packed, tmp_path / "adapter", base=source, tokenizer_path=source)
    export_model(packed, tmp_path / "merged", source=source, tokenizer_path=source)
    merged, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    adapted = PeftModel.from_pretrained(tiny.transformers_model(whole), tmp_path / "adapter").merge_and_unload()
    theirs = adapted.state_dict()
    assert merged.state_dict().keys() == theirs.keys()
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    # The export has changed nothing of the model.
    assert torch.equal(packed(tiny.pack(TEXTS)).detach(), loss)


def test_loading_has_no_more_than_two_matrices_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.save_random_model(tmp_path, "llama")
    read: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    quantise = Nf4Linear.quantise

    def noted(module: Nf4Linear, weight: torch.Tensor) -> torch.nn.Parameter:
        read.append(weakref.ref(weight))
        alive.append(sum(other() is not None for other in read))
        return quantise(module, weight)

    monkeypatch.setattr(Nf4Linear, "quantise", noted)
    tiny.built(source, lora_cfg=QLORA)
    assert len(alive) == 14
    assert max(alive) <= 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_matrix_is_packed_as_bitsandbytes_packs_it(precision: str, tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path, "llama", dtype=torch.bfloat16)
    model = tiny.built(source, lora_cfg=QLORA, precision=precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tensors = load_file(tmp_path / "model.safetensors")
    modules = {name: module for name, module in model.named_modules() if isinstance(module, Nf4Linear)}
    assert len(modules) == 2 * 7
    for name, module in modules.items():
        codes, state = quantize_4bit(
            tensors[f"{name.removesuffix('.base_layer')}.weight"].to(dtype), quant_type="nf4", compress_statistics=True
        )
        assert torch.equal(module.weight.data, codes), name
        assert torch.equal(module.weight.quant_state.absmax, state.absmax), name
        assert torch.equal(module.whole_weight(), dequantize_4bit(codes, state).float()), name
    held = {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    assert held["model.layers.0.mlp.up_proj.base_layer.weight"] == (torch.uint8, False)
    assert held["model.layers.0.mlp.up_proj.lora_A.default.weight"] == (torch.float32, True)
    assert held["lm_head.weight"] == (torch.bfloat16 if precision == "bf16" else torch.float32, False)


def test_products_are_computed_in_bf16_where_the_run_is(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path / "base", "llama")
    packed = tiny.built(source, lora_cfg=QLORA, precision="bf16")
    seen: list[torch.dtype] = []
    for module in packed.modules():
        if isinstance(module, Nf4Linear):
            module.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    loss, gradients = _step(packed)
    assert seen == [torch.bfloat16] * 14
    whole = tiny.built(
        dequantised(source, tmp_path / "whole", dtype=torch.bfloat16), lora_cfg=LoRAConfig(rank=4), precision="bf16"
    )
    torch.testing.assert_close(loss, whole(tiny.pack(TEXTS)).detach(), rtol=1e-2, atol=0)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


@pytest.mark.full
def test_recomputed_and_compiled_layers_give_the_same_numbers(tmp_path: Path) -> None:
    # Wide enough that packed products are kept where layers are recomputed selectively.
    source = tiny.save_random_model(tmp_path, "qwen3_tied", hidden_size=144, intermediate_size=192)
    selective = FSDPConfig(recompute_selectively=True)
    results = []
    for fsdp_cfg, compiled in (
        (FSDPConfig(), False),
        (FSDPConfig(recompute_ratio=1.0), False),
        (selective, False),
        (FSDPConfig(), True),
    ):
        torch.compiler.reset()
        model = tiny.built(source, lora_cfg=QLORA, fsdp_cfg=fsdp_cfg)
        move_b(model)
        if compiled:
            for layer in model.model.layers:
                # Traced and split into forward and backward: the C++ compiler takes a minute.
                layer.compile(backend="aot_eager")
        results.append(_step(model))
    plain = results[0]
    for loss, gradients in results[1:]:
        torch.testing.assert_close(loss, plain[0], rtol=1e-6, atol=0)
        for name, gradient in plain[1].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_layers_that_are_recomputed_selectively_give_the_same_bits(tmp_path: Path) -> None:
    # Wide enough that packed products are kept.
    source = tiny.save_random_model(tmp_path, "qwen3_tied", hidden_size=144, intermediate_size=192)
    results = []
    for selectively in (False, True):
        model = tiny.built(source, lora_cfg=QLORA, fsdp_cfg=FSDPConfig(recompute_selectively=selectively))
        move_b(model)
        results.append(_step(model))
    (loss, gradients), (recomputed_loss, recomputed) = results
    assert torch.equal(recomputed_loss, loss)
    for name, gradient in gradients.items():
        assert torch.equal(recomputed[name], gradient), name


def _estimate(model: torch.nn.Module, **options: Any) -> int:
    return estimate_memory(
        model,
        pack_tokens=9,
        precision="fp32",
        loss_cfg=CELossConfig(),
        fsdp_cfg=FSDPConfig(),
        optim_cfg=AdamWConfig(),
        **options,
    ).weights


def test_the_base_counts_with_its_scales_and_whole_on_every_rank(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path, "llama", **ODD)
    model = tiny.built(source, lora_cfg=QLORA)
    held, packed = 0, 0
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            held += parameter.nbytes
            if isinstance(module, Nf4Linear) and name == "weight":
                state = parameter.quant_state
                scales = state.absmax.nbytes + state.state2.absmax.nbytes
                held, packed = held + scales, packed + parameter.nbytes + scales
    assert _estimate(model) == held
    on_meta = model_on_meta(tiny.config_of(tmp_path), load_from=source, precision="fp32", lora_cfg=QLORA)
    assert _estimate(on_meta) == held
    halves = _estimate(on_meta, ranks=2)
    assert packed + (held - packed) // 2 <= halves < packed + (held - packed) // 2 + 1000


def test_a_packed_model_needs_the_operations_of_a_whole_one(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path, "llama")
    whole, packed = (tiny.built(source, lora_cfg=lora_cfg) for lora_cfg in (LoRAConfig(rank=4), QLORA))
    assert count_flops(packed) == count_flops(whole)


def test_what_has_no_linear_modules_is_refused(tmp_path: Path) -> None:
    source = tiny.save_random_model(tmp_path, "gpt2")
    with pytest.raises(JobFailure, match=r"lora\.quantize: nf4 finds no linear modules in the layers of a gpt2 model"):
        tiny.built(source, lora_cfg=QLORA)


def test_without_a_gpu_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    source = tiny.save_random_model(tmp_path, "llama")
    with pytest.raises(JobFailure) as refused:
        tiny.built(source, lora_cfg=QLORA)
    assert refused.value.reason is Reason.INVALID_CONFIGURATION
    assert refused.value.message == (
        "spec.training.lora.quantize: nf4 needs an NVIDIA GPU, and there is none here; ask for one in "
        "spec.compute.resources.limits, or remove it: LoRA without it trains on a CPU"
    )
