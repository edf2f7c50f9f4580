"""QLoRA's frozen base: linear matrices in 4 bits, by bitsandbytes.

NF4 (Dettmers et al., 2023): 64 neighbours of a matrix share a scale, and 256 scales, in 8 bits, share one in fp32.
`build` puts the modules in place on the meta device, the library's loader quantises one matrix after the other as it
reads them (`quantisers`), and `lora` asks for matrices as they are computed with. A packed matrix is not sharded: every
rank holds all of it. bitsandbytes is imported with the first such module: other jobs' processes need not wait for it.
"""

# mypy: disable-error-code="attr-defined"
# Its tensors carry attributes of bitsandbytes.

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from sft_trainer.model import transformers_private
from sftjob.failure import JobFailure, Reason
from sftjob.options import LoRAConfig

_BLOCK, _SCALES_OF_A_BLOCK = 64, 256

FIELD = "spec.training.lora.quantize"
DEVICES = ("cuda",)
"""Of whose speed something is known. bitsandbytes computes on a CPU too, which proves the arithmetic in tests."""


class Nf4Linear(torch.nn.Linear):
    """A frozen linear module; `weight` becomes what its `quantise` returns."""

    def __init__(self, plain: torch.nn.Linear, *, dtype: torch.dtype) -> None:
        import bitsandbytes

        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight = _unquantised(plain.weight.detach())
        self.bias = plain.bias
        self._dtype = dtype
        self._product = bitsandbytes.matmul_4bit

    def quantise(self, weight: torch.Tensor) -> torch.nn.Parameter:
        """On the device where `weight` is. Rounded first to what is computed with, as bitsandbytes' users have it."""
        return _unquantised(weight.to(self._dtype)).to(weight.device)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(self._dtype)
        # Keeps the packed weight for the backward, and makes it whole again there.
        return self._product(input.to(self._dtype), self.weight, quant_state=self.weight.quant_state, bias=bias)

    @torch.no_grad()
    def whole_weight(self) -> torch.Tensor:
        """As it is computed with, but in fp32."""
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight.data, self.weight.quant_state).float()


def refuse_without_gpu(config: LoRAConfig | None, device: torch.device) -> None:
    """Raises JobFailure(INVALID_CONFIGURATION). Called before any rank starts, and on each of them."""
    if config is not None and config.quantize == "nf4" and device.type not in DEVICES:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"{FIELD}: nf4 needs an NVIDIA GPU, and there is none here; ask for one in "
            "spec.compute.resources.limits, or remove it: LoRA without it trains on a CPU",
        )


def quantise_linear_modules(model: PreTrainedModel, *, dtype: torch.dtype) -> None:
    """Of the layers of a model on the meta device, where they stay: all that are frozen.

    Raises JobFailure(INVALID_CONFIGURATION) where there is none.
    """
    layers = transformers_private.decoder_layers(model)
    plain = {
        f"{layer}.{name}": module
        for layer, block in layers.items()
        for name, module in block.named_modules()
        # A class of the model's own may do something else with its weight.
        if type(module) is torch.nn.Linear and not module.weight.requires_grad
    }
    if not plain:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"{FIELD}: nf4 finds no linear modules in the layers of a {model.config.model_type} model; remove it",
        )
    for name, module in plain.items():
        model.set_submodule(name, Nf4Linear(module, dtype=dtype))


def quantisers(model: PreTrainedModel) -> dict[str, Callable[[torch.Tensor], torch.nn.Parameter]]:
    """By the names of weights."""
    return {
        f"{name}.weight": module.quantise for name, module in model.named_modules() if isinstance(module, Nf4Linear)
    }


def packed_parameters(model: torch.nn.Module) -> set[torch.nn.Parameter]:
    return {module.weight for module in model.modules() if isinstance(module, Nf4Linear)}


def is_packed(parameter: torch.nn.Parameter) -> bool:
    """Or will be, once it is loaded."""
    return hasattr(parameter, "quant_state")


def elements(parameter: torch.nn.Parameter) -> int:
    """Of the matrix itself, in whatever form a parameter holds it."""
    if is_packed(parameter) and parameter.quant_state is not None:
        return math.prod(parameter.quant_state.shape)
    return parameter.numel()


def packed_bytes(parameter: torch.nn.Parameter) -> int:
    """With its scales; of a parameter on the meta device what it will be."""
    count = elements(parameter)
    blocks = math.ceil(count / _BLOCK)
    return math.ceil(count / 2) + blocks + 4 * math.ceil(blocks / _SCALES_OF_A_BLOCK)


def _unquantised(weight: torch.Tensor) -> torch.nn.Parameter:
    from bitsandbytes.nn import Params4bit

    return Params4bit(weight, requires_grad=False, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
