"""Floating-point operations that a training step needs, and the share of the device's limit that it reached.

In: the model's modules and configuration, and a step's documents. Out: FLOPs. Pure; called by the loop and the
benchmarks.

The convention is that of PaLM (Chowdhery et al., 2022, appendix B), by what is needed and not by what a trainer happens
to do: a multiply-add is 2, the backward twice the forward, a causal attention half of the square, and nothing else than
matrix products counts. Recomputed layers and pads are not needed and don't count. The head counts on the rows that are
trained: nothing is learnt from the others, and crediting them would raise the share by masking more.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from sft_trainer.model import nf4

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}

_PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA B200": 2250e12,
}
"""FLOP/s of dense bf16 products summed in fp32, by the name that CUDA tells. From NVIDIA's data sheets of each product
(Ada's from its architecture paper), whose sparse figures are halved. By whole names: a slice of a GPU has another."""


@dataclass(frozen=True)
class ModelFlops:
    """Of training, forward and backward together."""

    per_token: int
    """All matrices but the head; of experts, those that a token is sent to."""
    per_trained_token: int
    """The head."""
    per_pair: Counter[int | None]
    """Attention's, for a query and a key, summed over the layers of each window; None: the whole document."""

    def of_documents(self, document_lengths: Sequence[int] | np.ndarray, *, trained_tokens: int) -> int:
        """`document_lengths`: tokens of each."""
        lengths = np.asarray(document_lengths, dtype=np.int64)
        total = self.per_token * int(lengths.sum()) + self.per_trained_token * trained_tokens
        for window, flops in self.per_pair.items():
            width = lengths if window is None else np.minimum(lengths, window)
            # A triangle as wide as the window, then a band.
            twice_the_pairs = int((2 * lengths * width - width**2).sum())
            total += flops * twice_the_pairs // 2
        return total


def count_flops(model: PreTrainedModel) -> ModelFlops | None:
    """Shapes alone are looked at, so the model may be on the meta device, or sharded. None: layers of unknown form.

    The gradient of a frozen matrix is not needed: 4 a token and parameter in place of 6.
    """
    config = model.config.get_text_config()
    windows, chosen = _windows(config), getattr(config, "num_experts_per_tok", None)
    if windows is None:
        return None
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters()
    }
    head = model.get_output_embeddings().weight
    per_token = 0
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p is not head and id(p) not in embeddings]
        experts = [parameter for parameter in own if parameter.ndim == 3]
        if experts and chosen is None:
            return None
        # Biases of experts are as many-dimensional as the matrices of others.
        for parameter in experts or [parameter for parameter in own if parameter.ndim == 2]:
            active = parameter.numel() // parameter.shape[0] * chosen if experts else nf4.elements(parameter)
            per_token += active * (6 if parameter.requires_grad else 4)
    per_pair: Counter[int | None] = Counter()
    for window in windows:
        per_pair[window] += 3 * 2 * config.num_attention_heads * _query_and_value_size(config)
    return ModelFlops(per_token, head.numel() * (6 if head.requires_grad else 4), per_pair)


def peak_flops(device: torch.device, *, precision: str) -> float | None:
    """FLOP/s that the device's maker states for bf16; None for another precision, a CPU or an unknown device."""
    if device.type != "cuda" or precision != "bf16":
        return None
    return _PEAKS.get(torch.cuda.get_device_name(device))


def speed_reached(flops_per_second: float, *, peak: float | None) -> dict[str, float]:
    """Of one rank, as metrics tell it: `tflops`, and `mfu` where the limit is known."""
    reached = {"tflops": float(f"{flops_per_second / 1e12:.4g}")}
    if peak:
        reached["mfu"] = round(flops_per_second / peak, 4)
    return reached


def _windows(config: PreTrainedConfig) -> list[int | None] | None:
    """Of each layer, in tokens; None where a layer does something else than attend to what is before."""
    width = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [width] * config.num_hidden_layers
    if not set(kinds) <= _KNOWN_LAYERS:
        return None
    return [width if kind == "sliding_attention" else None for kind in kinds]


def _query_and_value_size(config: PreTrainedConfig) -> int:
    """Of a head: not the hidden size by the heads where a configuration says otherwise (Qwen3-0.6B: 128, not 64)."""
    if hasattr(config, "qk_nope_head_dim"):
        return config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    return 2 * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
