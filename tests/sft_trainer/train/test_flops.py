"""FLOPs of a step: published sizes against figures worked out by hand, tiny models against torch's own counter."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from sft_trainer.train import flops
from sft_trainer.train.flops import count_flops, peak_flops
from sftjob.options import CELossConfig, FSDPConfig
from sftjob.presets import Qwen3Dense0P6BConfig, Qwen3Dense4BConfig, Qwen3Dense8BConfig
from tests.sft_trainer.model import tiny_models as tiny

QWEN3_1P7B = {"hidden_size": 2048, "intermediate_size": 6144}  # else as 0.6B


def on_meta(fields: dict) -> torch.nn.Module:
    fields = dict(fields)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))


# A layer's matrices, Qwen3-0.6B: queries and result 1024 x 16 * 128 each, keys and values 1024 x 8 * 128 each, three
# of 1024 x 3072: 15,728,640; 28 layers and the head, 151,936 x 1024, are 595,984,384. Six times that is 3,575,906,304 a
# token. Attention at half: 6 * 28 layers * 16 heads * 128 * 4096 tokens is 1,409,286,144. Together 4,985,192,448.
# 1.7B: 28 * 50,331,648 + 311,164,928. 4B: 36 * 100,925,440 + 388,956,160; attention 36 layers of 32 heads. 8B: 36 *
# 192,937,984 + 622,329,856. Frozen weights: four times in place of six.
@pytest.mark.parametrize(
    ("config", "full", "frozen"),
    [
        (Qwen3Dense0P6BConfig(), 4_985_192_448, 3_793_223_680),
        (Qwen3Dense0P6BConfig(**QWEN3_1P7B), 11_731_992_576, 8_291_090_432),
        (Qwen3Dense4BConfig(), 27_757_510_656, 19_712_966_656),
        (Qwen3Dense8BConfig(), 49_032_462_336, 33_896_267_776),
    ],
)
def test_a_token_of_4k_documents_costs_what_is_worked_out_by_hand(config, full: int, frozen: int) -> None:
    model = on_meta(config.hf_config())
    assert count_flops(model).of_documents(np.array([4096, 4096]), trained_tokens=8192) == 8192 * full
    model.requires_grad_(False)
    assert count_flops(model).of_documents(np.array([4096]), trained_tokens=4096) == 4096 * frozen


def test_of_the_head_only_trained_rows_count_and_of_attention_only_pairs_of_a_document() -> None:
    count = count_flops(on_meta(Qwen3Dense0P6BConfig().hf_config()))
    whole = count.of_documents(np.array([1000, 24]), trained_tokens=512)
    # 6 * 440,401,920 for each of 1,024 tokens, 6 * 155,582,464 for 512 of them, 6 * 28 * 16 * 128 * (1000^2 + 24^2).
    assert whole == 6 * 440_401_920 * 1024 + 6 * 155_582_464 * 512 + 344_064 * 1_000_576


@pytest.mark.parametrize("case", ["llama", "qwen3_tied", "gpt2"])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_torchs_own_counter_finds_the_same_products_and_more_only_where_layers_are_recomputed(
    case: str, ratio: float, tmp_path
) -> None:
    fields = {} if case == "gpt2" else {"head_dim": 16}  # of which 4 make more than the hidden size
    folder = tiny.save_random_model(tmp_path, case, **fields)
    model = tiny.built(folder, fsdp_cfg=FSDPConfig(recompute_ratio=ratio), loss_cfg=CELossConfig(mode="eager"))
    batch = tiny.pack(tiny.documents([9, 20, 13]))
    trained = int((batch.labels != -100).sum())
    # Attention as plain products of whole squares, and a loss without `addmm_`: what the counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch).backward()
    count = count_flops(model)
    squares = 9**2 + 20**2 + 13**2
    causal = 3 * 2 * 2 * 4 * (8 if case == "gpt2" else 16) * squares  # 2 layers of 4 heads, queries and values alike
    found = count.of_documents(np.array([9, 20, 13]), trained_tokens=trained) + causal
    if ratio:
        assert found < counter.get_total_flops()
    else:
        assert found == counter.get_total_flops()


def test_a_layer_with_a_window_counts_a_band() -> None:
    fields = tiny.config_fields("gemma3_text")  # one layer with a window of 5, one without
    count = count_flops(on_meta(fields))
    matrices, head = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48), 32 * 96
    alone = count.of_documents(np.array([12]), trained_tokens=3) - 6 * (matrices * 12 + head * 3)
    # Half of 12 * 12; a triangle of half of 5 * 5, then 7 rows of 5. A pair is 6 * 4 heads * 16.
    assert alone == 384 * 72 + 384 * 12.5 + 384 * 35


def test_of_experts_those_count_that_a_token_is_sent_to() -> None:
    count = count_flops(on_meta(tiny.config_fields("qwen3_moe")))
    # A layer: 2 of 32 x 32, 2 of 32 x 16, a router of 32 x 4, and 2 of 4 experts with three of 32 x 16.
    assert count.per_token == 6 * 2 * (2 * 1024 + 2 * 512 + 128 + 2 * 3 * 512)


def test_layers_of_an_unknown_form_are_not_guessed() -> None:
    model = on_meta(tiny.config_fields("qwen3_tied"))
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert count_flops(model) is None


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("Some other device", "bf16", None),
    ],
)
def test_a_limit_is_known_for_whole_devices_by_name_and_for_bf16(monkeypatch, name, precision, peak) -> None:
    monkeypatch.setattr(flops.torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(SimpleNamespace(type="cuda"), precision=precision) == peak
    assert peak_flops(torch.device("cpu"), precision=precision) is None
