"""The model that is trained: transformers' own module, sharded, with weights, its forward taking packs.

Called once by the Trainer, on every rank: DoRA's lengths are taken of whole weights, which is collective. `lora` is
imported where a job has it: peft brings bitsandbytes and torch's compiler, which takes two seconds of every start.
"""

import types
from typing import Any, Literal

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM, PreTrainedModel

from sft_trainer.model import attention, experts, nf4, scratch, transformers_private, weights
from sft_trainer.model.bf16_weights import Bf16Weights
from sft_trainer.model.config import FolderConfig, origin, trained_config, transformers_config
from sft_trainer.model.forward import PackForward
from sft_trainer.model.recompute import recompute_in_backward, recomputed_layers
from sftjob.failure import JobFailure, Reason
from sftjob.options import CELossConfig, FSDPConfig, LoRAConfig, Precision
from sftjob.presets import ModelConfig


def build_model(
    model_cfg: ModelConfig | FolderConfig,
    *,
    load_from: str | None,
    loss_cfg: CELossConfig,
    fsdp_cfg: FSDPConfig,
    precision: Literal["fp32", "bf16"],
    device: torch.device,
    mesh: DeviceMesh | None,
    seed: int,
    lora_cfg: LoRAConfig | None = None,
) -> torch.nn.Module:
    """A module in training mode: `model(batch: PackedBatch)` is the fp32 sum of cross-entropy over trained labels.

    Parameters are fp32, and DTensors where there is a `mesh` (one-dimensional, over all ranks); gradients are summed
    over its ranks, not averaged. With `lora_cfg` those that want no gradient are the model's own; its matrices are in
    bf16 where they came in bf16 and are computed with in bf16; packed ones are no DTensors. `seed` is that of weights
    which `load_from` has not: they are the same on any number of ranks. Raises JobFailure: INVALID_CONFIGURATION or
    MODEL_UNREADABLE.
    """
    nf4.refuse_without_gpu(lora_cfg, device)
    model = model_on_meta(model_cfg, load_from=load_from, precision=precision, lora_cfg=lora_cfg)
    # With a mesh FSDP2 casts.
    autocast = precision == "bf16" and mesh is None
    if autocast:
        experts.follow_autocast(model)
    compiled = compiles(fsdp_cfg, device)
    layers = list(transformers_private.decoder_layers(model).values())
    kept = _layers_that_recompute_nothing(layers, fsdp_cfg)
    forward = PackForward(
        model,
        loss_cfg=loss_cfg,
        autocast_to=torch.bfloat16 if autocast else None,
        bf16_weights=Bf16Weights(kept) if autocast and not lora_cfg else None,
        device=device,
        compiled=compiled,
        # In fp32 attention goes from document to document, by lengths that a graph can't hold.
        captured=compiled and autocast and device.type == "cuda" and kept == layers,
    )
    # On the instance, before FSDP2 hooks it.
    model.forward = types.MethodType(forward, model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    recompute_in_backward(layers, fsdp_cfg)
    if compiled:
        for layer in layers:
            layer.compile()
    if mesh is not None:
        _shard(model, mesh=mesh, fsdp_cfg=fsdp_cfg, precision=precision)
    if load_from is None:
        scratch.initialise(model, device=device, seed=seed)
    else:
        drops_layers = isinstance(model_cfg, ModelConfig) and "num_hidden_layers" in model_cfg.model_fields_set
        if lora_cfg is None:
            weights.load(model, load_from, device=device, drops_layers=drops_layers)
        else:
            from sft_trainer.model import lora

            with lora.unwrapped(model):
                weights.load(model, load_from, device=device, drops_layers=drops_layers)
            lora.initialise(model, device=device, seed=seed)
        for name, parameter in model.named_parameters():
            # The library's loader makes new parameters, which want a gradient.
            parameter.requires_grad_(name in trained)
    return model.train()


def chosen_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    if precision != "auto":
        return precision
    # What is emulated, before Ampere, is slower than fp32.
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def compiles(fsdp_cfg: FSDPConfig, device: torch.device) -> bool:
    if fsdp_cfg.torch_compile is None:
        return device.type == "cuda"
    return fsdp_cfg.torch_compile


def model_on_meta(
    model_cfg: ModelConfig | FolderConfig,
    *,
    load_from: str | None,
    precision: Literal["fp32", "bf16"],
    lora_cfg: LoRAConfig | None,
) -> PreTrainedModel:
    """Its modules, shapes and what of it is trained, in no memory. Raises as `build_model` does."""
    fields = trained_config(model_cfg, load_from=load_from)
    model = _of_transformers(fields, said_by=origin(load_from))
    if lora_cfg is not None:
        from sft_trainer.model import lora

        # Before peft gives some of them other names.
        kept_in_fp32 = transformers_private.kept_in_fp32(model, dtype=torch.bfloat16).values()
        lora.inject(model, lora_cfg)
        if precision == "bf16" and "bfloat16" in (fields.get("dtype"), fields.get("torch_dtype")):
            _hold_frozen_matrices_in_bf16(model, but=set(kept_in_fp32))
        if lora_cfg.quantize == "nf4":
            nf4.quantise_linear_modules(model, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return model


def _of_transformers(fields: dict[str, Any], *, said_by: str) -> PreTrainedModel:
    attention.register()
    config = transformers_config(fields, said_by=said_by)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, attn_implementation=attention.NAME, dtype=torch.float32, trust_remote_code=False
            )
    except KeyError:
        # Classes that look attention up in a table of their own (falcon, git).
        raise _unsuitable(
            config.model_type, "its attention can't be replaced by one that keeps documents apart"
        ) from None
    except ValueError as error:
        raise _unsuitable(config.model_type, " ".join(str(error).split())) from None
    if (
        model.base_model is model
        or model.get_output_embeddings() is None
        or not transformers_private.decoder_layers(model)
    ):
        raise _unsuitable(config.model_type, "it is not made of layers under a base model, and a head")
    text_config = config.get_text_config(decoder=True)
    if getattr(text_config, "output_router_logits", False) and getattr(text_config, "router_aux_loss_coef", 0):
        # It balances experts over a batch of pretraining; on packs of one subject it would unlearn their division.
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"{said_by}: output_router_logits asks for a router loss, which is not trained here; set it to false",
        )
    # What the export writes: the library's own object has lost which fields the file had, and how they were spelled.
    model.config_json = fields
    return model


def _hold_frozen_matrices_in_bf16(model: PreTrainedModel, *, but: set[torch.nn.Parameter]) -> None:
    """Half the memory, and the same numbers: they are cast to bf16 for each product anyway.

    The embedding is no factor of a product, and would make the residual stream bf16 where it is not.
    """
    # The parameter, not its module: a tied one is the head's too.
    spared = but | {model.get_input_embeddings().weight}
    for parameter in model.parameters():
        if parameter not in spared and parameter.ndim >= 2 and not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def _layers_that_recompute_nothing(layers: list[torch.nn.Module], fsdp_cfg: FSDPConfig) -> list[torch.nn.Module]:
    """They keep copies of their weights from forward to backward. Whoever recomputes is short of memory for any."""
    if fsdp_cfg.recompute_selectively:
        return []
    recomputed = recomputed_layers(len(layers), ratio=fsdp_cfg.recompute_ratio)
    return [layer for index, layer in enumerate(layers) if index not in recomputed]


def _shard(model: PreTrainedModel, *, mesh: DeviceMesh, fsdp_cfg: FSDPConfig, precision: str) -> None:
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    layers = list(transformers_private.decoder_layers(model).values())
    whole = nf4.packed_parameters(model) or None
    for layer in layers:
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=fsdp_cfg.reshard_after_forward,
            ignored_params=whole,
        )
    # The head is needed again at once, at the start of the backward.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False, ignored_params=whole)
    for module in (*layers, model):
        # The loss is a sum of tokens that the Trainer divides by one global count: ranks add up, they do not average.
        module.set_gradient_divide_factor(1.0)
        # Else NCCL divides in the reduction itself, which loses bf16 gradients (see transformers' distributed/fsdp.py).
        module.set_force_sum_reduction_for_comms(True)


def _unsuitable(model_type: str, why: str) -> JobFailure:
    return JobFailure(
        Reason.INVALID_CONFIGURATION, f"model: {model_type} can't be trained on packs: {why}; use another model"
    )
