"""Every call into transformers that its documentation does not promise, in one place.

Pinned to the version in pyproject.toml; `tests/sft_trainer/model/test_transformers_private.py` says which one moved.
Called by the other modules of this folder only.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, build_glob_alternation, revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import LoadStateDictConfig
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.utils import logging
from transformers.utils.quantization_config import BitsAndBytesConfig


def decoder_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """The outermost blocks, by name, in order: what is compiled and sharded as one."""
    found: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, GradientCheckpointingLayer) and not nested:
            found[name] = module
    return found


def checkpoint_by(layer: torch.nn.Module, checkpoint: Callable[..., Any]) -> None:
    """Run a layer's forward by `checkpoint(forward, *inputs)` in training. The library's own switch, which renames no
    parameter, and is inside of what compile and FSDP2 put around a layer.
    """
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = checkpoint


def is_compiled(model: PreTrainedModel) -> bool:
    """Whether a module was compiled in place. torch's own private attribute, not the library's."""
    return any(module._compiled_call_impl is not None for module in model.modules())


@dataclass(frozen=True)
class WeightProblems:
    """What a folder's weights lack or have too much of, by the model's names."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    failed: list[str]


Quantise = Callable[[torch.Tensor], torch.nn.Parameter]


class _Quantizer(Bnb4BitHfQuantizer):
    """Makes the loader hand over each of these tensors, whole and in fp32, and free it before it reads the next."""

    def __init__(self, quantisers: Mapping[str, Quantise]) -> None:
        super().__init__(BitsAndBytesConfig(load_in_4bit=True), pre_quantized=False)
        self._quantisers = quantisers

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:  # noqa: ARG002
        return param_name in self._quantisers

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantising(self._quantisers)


class _Quantising(ConversionOps):
    def __init__(self, quantisers: Mapping[str, Quantise]) -> None:
        self._quantisers = quantisers

    def convert(self, input_dict: dict[str, Any], **_: Any) -> dict[str, torch.Tensor]:
        found = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        # One tensor of a file may become several parameters.
        return {
            name: self._quantisers[name](value) if name in self._quantisers else value for name, value in found.items()
        }


def load_weights(
    model: PreTrainedModel,
    files: list[str],
    *,
    device: torch.device,
    dropped_layers: re.Pattern[str] | None,
    quantisers: Mapping[str, Quantise],
) -> WeightProblems:
    """Fill a model on the meta device, sharded or not, with this rank's parts of the tensors in `files`.

    `dropped_layers` matches names whose presence in the files is no problem. `quantisers` make the parameters of these
    names. Where there are problems the model is left unfinished.
    """
    config = LoadStateDictConfig(
        device_map={"": device},
        dtype=torch.float32,
        weight_mapping=get_model_conversion_mapping(model),
        hf_quantizer=_Quantizer(quantisers) if quantisers else None,
    )
    showed_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        info, _ = model._load_pretrained_model(model, None, files, config)
        # On a copy: finishing needs to know of the ignored keys too.
        adjusted = replace(info, missing_keys=set(info.missing_keys), unexpected_keys=set(info.unexpected_keys))
        model._adjust_missing_and_unexpected_keys(adjusted)
        tied = model.all_tied_weights_keys
        problems = WeightProblems(
            missing=sorted(
                key
                for key in adjusted.missing_keys
                if not _counterpart_is_there(key, tied=tied, missing=info.missing_keys)
            ),
            unexpected=sorted(
                key for key in adjusted.unexpected_keys if not (dropped_layers and dropped_layers.match(key))
            ),
            mismatched=sorted(key for key, *_ in info.mismatched_keys),
            failed=sorted({*info.conversion_errors, *info.error_msgs}),
        )
        if not any((problems.missing, problems.unexpected, problems.mismatched, problems.failed)):
            # Reports nothing to its logger: all that it would report has been dealt with.
            info.unexpected_keys.clear()
            model._finalize_model_loading(model, config, info)
    finally:
        if showed_progress:
            logging.enable_progress_bar()
    return problems


def _counterpart_is_there(key: str, *, tied: dict[str, str], missing: set[str]) -> bool:
    """Whether a missing weight is tied to one that was loaded, in either direction."""
    partners = {tied[key]} if key in tied else {target for target, source in tied.items() if source == key}
    return bool(partners - missing)


def tied_weights(model: PreTrainedModel) -> dict[str, str]:
    """Name of each tied weight -> name of the one that it is tied to."""
    return dict(model.all_tied_weights_keys)


def tie_weights(model: PreTrainedModel) -> None:
    model.tie_weights(recompute_mapping=False)


def kept_in_fp32(model: PreTrainedModel, *, dtype: torch.dtype) -> dict[str, torch.nn.Parameter]:
    """By name those that the library loads, computes with and saves in fp32 in a model of this dtype: mostly routers
    and the corrections of their choice.
    """
    patterns = list(model._get_dtype_plan(dtype))
    if not patterns:
        return {}
    any_of_them, *_ = build_glob_alternation(patterns)
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if any_of_them.search(name)}


def initialise_module(owner: PreTrainedModel, module: torch.nn.Module) -> None:
    """Random values, by the rules of `owner`, for the parameters and buffers that `module` itself holds."""
    owner._init_weights(module)


def to_saved_layout(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """From the module's names and shapes to those of a model folder (an MoE layer's experts one by one)."""
    reverted: dict[str, Any] = revert_weight_conversion(model, tensors)
    return reverted


def decoded(fields: dict[str, Any]) -> dict[str, Any]:
    """`config.json` as the library reads it, where an infinity is `{"__float__": "Infinity"}`."""
    plain: dict[str, Any] = PreTrainedConfig._decode_special_floats(fields)
    return plain


def attention_name(model: PreTrainedModel) -> str:
    name: str = model.config._attn_implementation
    return name


def rotary_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Of each kind of layer that has rotary positions; the library has told them apart, and spelled them alike."""
    given: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    by_kind = [given[kind] for kind in config.nested_rope_parameter_keys(given)] or [given]
    return [parameters for parameters in by_kind if parameters]
