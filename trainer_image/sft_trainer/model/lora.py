"""LoRA by peft's own layers, put into the model in place: everything else goes on finding the modules that it knows.

`build` injects on the meta device, loads the base under its own names (`unwrapped`), then calls `initialise`; `export`
asks for merged weights and for what peft stores.
"""

# mypy: disable-error-code="attr-defined"
# Peft adds to its classes what their types do not have.

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from sft_trainer.model import scratch
from sft_trainer.model.lora_choice import TARGETS, choose
from sft_trainer.model.nf4 import Nf4Linear
from sftjob.failure import JobFailure, Reason
from sftjob.options import LoRAConfig

_ADAPTER = "default"


def inject(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Into a model on the meta device, where the adapters stay too; then only they and saved modules want a gradient.

    Raises JobFailure(INVALID_CONFIGURATION) with every name that does not fit this model.
    """
    choice = choose(model, config)
    ours = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        use_dora=config.dora,
        lora_dropout=config.dropout,
        target_modules=choice.targets,
        modules_to_save=choice.saved or None,
    )
    try:
        with torch.device("meta"):
            inject_adapter_in_model(ours, model, adapter_name=_ADAPTER)
    except ValueError as error:
        # peft takes some names for those of experts, and then wants all of these.
        raise JobFailure(
            Reason.INVALID_CONFIGURATION, f"{TARGETS}: {error}; name those to adapt, as q_proj and v_proj"
        ) from None
    if ours.target_parameters:
        # peft takes the names of modules that experts once were for the parameter that holds them all now.
        experts = ", ".join(sorted(set(choice.targets) - set(ours.target_modules)))
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"{TARGETS}: {experts} would adapt the experts of a {model.config.model_type} model too, which are no "
            "modules; name those to adapt, as q_proj and v_proj",
        )
    for name in choice.saved:
        # peft keeps the module that it copied, to switch the copy off: never done here, and an embedding is large.
        model.get_submodule(name).original_module = torch.nn.Identity()


@contextmanager
def unwrapped(model: PreTrainedModel) -> Iterator[dict[str, Callable[[], torch.Tensor]]]:
    """The tree as the library made it: base weights, and modules trained whole, by the names that a model folder has.

    Yields, by the names of the modules that are adapted, what merges their adapters into their weights.
    """
    wrappers = {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLayer | ModulesToSaveWrapper)
    }
    for name, wrapper in wrappers.items():
        adapted = isinstance(wrapper, LoraLayer)
        model.set_submodule(name, wrapper.get_base_layer() if adapted else wrapper.modules_to_save[_ADAPTER])
    try:
        yield {name: partial(_merged, wrapper) for name, wrapper in wrappers.items() if isinstance(wrapper, LoraLayer)}
    finally:
        for name, wrapper in wrappers.items():
            model.set_submodule(name, wrapper)


@torch.no_grad()
def initialise(model: PreTrainedModel, *, device: torch.device, seed: int) -> None:
    """Replace the adapters' meta tensors by peft's rules, the same on any number of ranks; base weights are loaded."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, LoraLayer):
                _initialise_layer(module, device=device)


def _initialise_layer(layer: LoraLayer, *, device: torch.device) -> None:
    pair = [layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]]
    meta = [part.weight for part in pair]
    for part in pair:
        scratch.put(part, "weight", torch.empty(part.weight.shape, device=device))
    # Every rank draws whole matrices, and keeps its part.
    layer.reset_lora_parameters(_ADAPTER, True)
    for part, of in zip(pair, meta, strict=True):
        scratch.put(part, "weight", scratch.this_ranks_part(part.weight.detach(), of=of))
    if _ADAPTER in layer.lora_magnitude_vector:
        dora = layer.lora_magnitude_vector[_ADAPTER]
        # B is 0, so that what DoRA learns begins as the lengths of the base weight's rows.
        lengths = dora.get_weight_norm(_whole_weight(layer.get_base_layer()), 0.0, scaling=1.0)
        scratch.put(dora, "weight", scratch.this_ranks_part(lengths, of=dora.weight))


@torch.no_grad()
def _merged(layer: LoraLayer) -> torch.Tensor:
    """The adapted module's weight with its adapter in it, whole, in fp32. Called by every rank, and leaves `layer`.

    A packed weight counts as it was computed with: the adapter was trained beside that one.
    """
    parameters = {
        id(parameter): torch.nn.Parameter(
            _whole_weight(module) if name == "weight" else _whole(parameter), requires_grad=False
        )
        for module in layer.modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    # `deepcopy` takes for a copy what it finds under an object's id.
    alone = copy.deepcopy(layer, parameters)
    alone.merge()
    weight: torch.Tensor = alone.get_base_layer().weight
    return weight


def adapter_tensors(model: PreTrainedModel, *, keeps: bool) -> dict[str, torch.Tensor]:
    """What peft stores, whole and by its names, on the host of the rank that `keeps`. Called by every rank."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    trained = {}
    for name, tensor in model.state_dict().items():
        if name in frozen:
            continue
        # One after the other: all whole at once may be more than a GPU has left.
        gathered = _whole(tensor)
        if keeps:
            trained[name] = gathered.cpu()
    if not keeps:
        return {}
    found = get_peft_model_state_dict(model, state_dict=trained, adapter_name=_ADAPTER, save_embedding_layers=False)
    return {f"base_model.model.{name}": tensor for name, tensor in found.items()}


def adapter_config(model: PreTrainedModel, *, base: str, revision: str | None) -> LoraConfig:
    """As an adapter's folder has it. `base` is where the adapted model lies, at a repository's `revision`."""
    config = copy.copy(model.peft_config[_ADAPTER])
    config.base_model_name_or_path = base
    config.revision = revision
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)
    return config


def _whole_weight(module: torch.nn.Module) -> torch.Tensor:
    """A copy in fp32, of a packed weight too. Called by every rank."""
    return module.whole_weight() if isinstance(module, Nf4Linear) else _whole(module.weight)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in fp32."""
    # All ranks: an all-gather over the mesh, in the order of the model's modules, which is the same on all.
    gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered.detach().to(torch.float32, copy=True)
