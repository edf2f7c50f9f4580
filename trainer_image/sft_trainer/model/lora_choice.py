"""Which modules of a model LoRA adapts, and which it trains whole. Pure; called by `lora`."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft_trainer.model import transformers_private
from sftjob.failure import JobFailure, Reason
from sftjob.options import LoRAConfig

TARGETS = "spec.training.lora.targetModules"
SAVED = "spec.training.lora.modulesToSave"


@dataclass(frozen=True)
class Choice:
    """By names of modules."""

    targets: list[str]
    """Ends of names, where they mean linear modules alone."""
    saved: list[str]
    """Whole names: peft compares ends without regard to dots, and `norm` would be every `q_norm` too."""


def choose(model: PreTrainedModel, config: LoRAConfig) -> Choice:
    """Raises JobFailure(INVALID_CONFIGURATION) with every name that does not fit this model."""
    modules = {name: module for name, module in model.named_modules() if name}
    layers = transformers_private.decoder_layers(model)
    tied = _tied_modules(model)
    ends = {
        name
        for name, module in modules.items()
        if module is model.get_input_embeddings() or module is model.get_output_embeddings()
    }
    linear = {
        name for name, module in modules.items() if isinstance(module, torch.nn.Linear | Conv1D) and name not in ends
    }
    of_this = f"of a {model.config.model_type} model"
    problems = []

    for wanted in config.target_modules:
        found = _found(wanted, modules)
        if found & tied:
            problems.append(f"{TARGETS}: {_shares(wanted, tied)}")
        elif found & ends:
            problems.append(f"{TARGETS}: {wanted} has no adapter here; train it whole, with modulesToSave")
        elif not found or found - linear:
            problems.append(f"{TARGETS}: {wanted} is no linear module {of_this}; use some of {_short(linear)}")

    saved: set[str] = set()
    for wanted in config.modules_to_save:
        found = {name for name in _found(wanted, modules) if not isinstance(modules[name], torch.nn.ModuleList)}
        inner = {name for name in modules if any(_is_within(name, outer) for outer in found)}
        if inner & tied:
            problems.append(f"{SAVED}: {_shares(wanted, tied)}")
        elif inner & layers.keys():
            problems.append(f"{SAVED}: {wanted} holds whole layers; leave lora out to train all weights")
        elif not any(list(modules[name].parameters()) for name in found):
            outside = {
                name
                for name, module in modules.items()
                if list(module.parameters(recurse=False))
                and name not in tied
                and not any(_is_within(name, layer) for layer in layers)
            }
            problems.append(f"{SAVED}: {wanted} is no module with weights {of_this}; use some of {_short(outside)}")
        saved |= found

    names = config.target_modules or _ends_of(linear, modules)
    targets = {target for name in names for target in _found(name, modules)}
    if not problems and all(any(_is_within(name, outer) for outer in saved) for name in targets):
        problems.append(f"{SAVED}: {', '.join(config.modules_to_save)} leaves nothing to adapt; name fewer modules")
    if problems:
        raise JobFailure(Reason.INVALID_CONFIGURATION, "\n".join(problems))
    outermost = {name for name in saved if not any(_is_within(name, outer) for outer in saved - {name})}
    return Choice(targets=list(names), saved=sorted(outermost))


def _ends_of(linear: set[str], modules: dict[str, torch.nn.Module]) -> list[str]:
    """Last parts of names, whole names where the last part means other modules too."""
    last = {name: name.rpartition(".")[2] for name in linear}
    clear = {part: _found(part, modules) <= linear for part in last.values()}
    return sorted({part if clear[part] else name for name, part in last.items()})


def _tied_modules(model: PreTrainedModel) -> set[str]:
    tied = transformers_private.tied_weights(model)
    return {weight.rpartition(".")[0] for weight in (*tied.keys(), *tied.values())}


def _shares(wanted: str, tied: set[str]) -> str:
    return (
        f"{wanted} shares its weight ({' and '.join(sorted(tied))} are tied), and a merged model could not keep both; "
        "leave it out"
    )


def _found(wanted: str, modules: dict[str, torch.nn.Module]) -> set[str]:
    return {name for name in modules if name == wanted or name.endswith(f".{wanted}")}


def _is_within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _short(names: set[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))
