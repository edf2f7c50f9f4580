"""From what the user names, a preset or a model folder or both, to the one `config.json` that is trained.

Called by the user's script (`get_model_config_from_hf`) and by `build`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sft_trainer.model import transformers_private
from sftjob.failure import JobFailure, Reason
from sftjob.names import HUB
from sftjob.presets import ModelConfig

# Changes neither a weight nor, with the plain rotary embedding of the presets, any arithmetic; releases of one model
# differ in it (Qwen3-8B and Qwen3-8B-Base), so the folder's own is kept.
_FOLDERS_OWN = "max_position_embeddings"


@dataclass(frozen=True)
class FolderConfig:
    """A model as its folder's `config.json` describes it."""

    folder: str
    fields: dict[str, Any]

    def hf_config(self) -> dict[str, Any]:
        return dict(self.fields)


def get_model_config_from_hf(path: str | Path) -> FolderConfig:
    """Of any causal language model. Raises JobFailure(MODEL_UNREADABLE)."""
    folder = Path(path)
    file = folder / "config.json"
    if str(path).startswith(HUB):
        raise _unreadable(
            f"{path}: is on a hub; download it first, with huggingface_hub.snapshot_download, and name its folder"
        )
    if not folder.is_dir():
        raise _unreadable(f"{folder}: no such folder; name a Hugging Face model folder")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _unreadable(
            _adapter(folder) or f"{file}: missing; name a Hugging Face model folder, which has one"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _unreadable(f"{file}: not JSON ({error}); copy the model again") from None
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise _unreadable(f"{file}: no model_type in it; name a Hugging Face model folder")
    if "quantization_config" in fields:
        raise _unreadable(f"{file}: the weights are quantized; name the folder of the unquantized model")
    return FolderConfig(folder=str(folder), fields=fields)


def _adapter(folder: Path) -> str | None:
    """What is told of a folder that holds peft's adapter alone; None of any other."""
    try:
        fields = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    base = fields.get("base_model_name_or_path") if isinstance(fields, dict) else None
    return (
        f"{folder}: is an adapter of {base or 'a model that it does not name'}, and no model; train on from an output "
        "with format: hf, or merge it first with peft's merge_and_unload"
    )


def trained_config(model_cfg: ModelConfig | FolderConfig, *, load_from: str | None) -> dict[str, Any]:
    """The content of `config.json` for the model to be trained.

    Fields of a preset that the user set replace the folder's; its other fields have to agree with the folder's. Raises
    JobFailure: INVALID_CONFIGURATION with every field that does not, MODEL_UNREADABLE for the folder.
    """
    if load_from is None:
        return model_cfg.hf_config()
    folder = get_model_config_from_hf(load_from)
    wanted = model_cfg.hf_config()
    if wanted["model_type"] != folder.fields["model_type"]:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"model: a {wanted['model_type']} model is configured, but {load_from} holds a "
            f"{folder.fields['model_type']} model; name a fitting preset, or none",
        )
    if isinstance(model_cfg, FolderConfig):
        return wanted
    said_by = origin(load_from)
    in_folder = transformers_config(folder.fields, said_by=said_by)
    differing = [
        f"{name} is {getattr(model_cfg, name)} in the preset and {theirs} in {said_by}"
        for name in type(model_cfg).model_fields
        if name not in model_cfg.model_fields_set and name != _FOLDERS_OWN
        if (theirs := _value(in_folder, name)) != getattr(model_cfg, name)
    ]
    if differing:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"model: {'; '.join(differing)}; use the preset of that model, or leave the preset out: the folder's "
            "config.json is used then",
        )
    if model_cfg.num_hidden_layers > in_folder.num_hidden_layers:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"model: num_hidden_layers is {model_cfg.num_hidden_layers}, but {load_from} has "
            f"{in_folder.num_hidden_layers} layers; use as many or fewer",
        )
    return _overridden(folder.fields, model_cfg, layers_in_folder=in_folder.num_hidden_layers)


def origin(load_from: str | None) -> str:
    """Of a `trained_config`, for errors."""
    return f"{load_from}/config.json" if load_from else "model"


def transformers_config(fields: dict[str, Any], *, said_by: str) -> PreTrainedConfig:
    """transformers' own configuration object. `said_by` names the origin of `fields` in errors."""
    model_type = fields["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise _unreadable(f"{said_by}: transformers has no model type {model_type!r}; use one that it has")
    # Never the folder's own code.
    arguments = {
        name: value
        for name, value in transformers_private.decoded(fields).items()
        if name not in ("model_type", "auto_map")
    }
    try:
        return AutoConfig.for_model(model_type, **arguments)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(
            f"{said_by}: not a valid {model_type} configuration ({_one_line(error)}); correct it"
        ) from None


def _value(config: PreTrainedConfig, name: str) -> Any:
    """Of a preset's field, in the library's configuration."""
    if name == "rope_theta":
        return config.rope_parameters["rope_theta"]
    if name == "rope_scaling":
        rope = {key: value for key, value in config.rope_parameters.items() if key != "rope_theta"}
        return None if rope == {"rope_type": "default"} else rope
    return getattr(config, name)


def _overridden(fields: dict[str, Any], model_cfg: ModelConfig, *, layers_in_folder: int) -> dict[str, Any]:
    """`fields` with what the user set, in the places where this file has them."""
    fields = dict(fields)
    for name in model_cfg.model_fields_set:
        value = getattr(model_cfg, name)
        if name == "rope_theta" and "rope_parameters" in fields:
            fields["rope_parameters"] = fields["rope_parameters"] | {"rope_theta": value}
        elif name == "rope_scaling" and "rope_parameters" in fields:
            theta = fields["rope_parameters"]["rope_theta"]
            fields["rope_parameters"] = (value or {"rope_type": "default"}) | {"rope_theta": theta}
        else:
            fields[name] = value
    layers = model_cfg.num_hidden_layers
    if "num_hidden_layers" in model_cfg.model_fields_set and layers < layers_in_folder:
        # `layer_types` and its like have one entry a layer.
        for name, value in fields.items():
            if isinstance(value, list) and len(value) == layers_in_folder:
                fields[name] = value[:layers]
    return fields


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _unreadable(message: str) -> JobFailure:
    return JobFailure(Reason.MODEL_UNREADABLE, message)
