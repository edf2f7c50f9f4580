"""A model folder's weights into a model on the meta device, each rank its own parts. Called by `build`.

Every rank reads the same headers and so comes to the same verdict, without a collective.
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from sft_trainer.model import nf4, scratch, transformers_private
from sft_trainer.model.weight_files import listed, unreadable, weight_files


def load(model: PreTrainedModel, folder: str, *, device: torch.device, drops_layers: bool) -> None:
    """Fill `model` from the safetensors of `folder`.

    `drops_layers`: the folder may hold layers after the model's last. Any other key that is missing, unexpected or of
    another shape raises JobFailure(MODEL_UNREADABLE) with its name, as does a file that is cut short.
    """
    files = weight_files(Path(folder))
    mismatched = _mismatched(model, tensor_shapes(files))
    tied = transformers_private.tied_weights(model)
    problems = None
    if not mismatched:
        try:
            problems = transformers_private.load_weights(
                model,
                [str(file) for file in files],
                device=device,
                dropped_layers=_later_layers(model) if drops_layers else None,
                quantisers=nf4.quantisers(model),
            )
        except (SafetensorError, OSError) as error:
            raise unreadable(f"{folder}: {error}; copy the model again") from None
        mismatched = problems.mismatched
    found = {
        "missing": problems.missing if problems else [],
        "unexpected": problems.unexpected if problems else [],
        "of another shape": mismatched,
        "not convertible": problems.failed if problems else [],
    }
    if any(found.values()):
        said = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in found.items() if keys)
        raise unreadable(f"{folder}: weights do not fit its configuration; {said}; use the config.json they came with")
    if transformers_private.tied_weights(model) != tied:
        raise unreadable(
            f"{folder}/config.json: tie_word_embeddings is true, but the weights hold a head that differs from the "
            "embedding; set it to false"
        )
    _own_parts(model)


def tensor_shapes(files: list[Path]) -> dict[str, list[int]]:
    """Of every tensor, from the headers. Raises JobFailure(MODEL_UNREADABLE) where a file is cut short."""
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise unreadable(f"{file}: cut short or not safetensors ({error}); copy the model again") from None
    return shapes


def _mismatched(model: PreTrainedModel, shapes: dict[str, list[int]]) -> list[str]:
    """Of the keys that no conversion touches: a shard of a larger tensor can fit by its size, so whole shapes count."""
    return sorted(
        f"{name} ({shapes[name]}, expected {list(tensor.shape)})"
        for name, tensor in model.state_dict().items()
        if name in shapes and shapes[name] != list(tensor.shape)
    )


def _own_parts(model: PreTrainedModel) -> None:
    """Of a file in fp32 a rank on a CPU has views of the whole, which torch can't copy for a save beside the steps."""
    owned: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                continue
            local = parameter.to_local()
            if local.untyped_storage().nbytes() > local.nbytes:
                # Tied ones stay tied.
                if parameter not in owned:
                    owned[parameter] = torch.nn.Parameter(scratch.own_part(parameter.detach()))
                setattr(module, name, owned[parameter])


def _later_layers(model: PreTrainedModel) -> re.Pattern[str]:
    """Matches the names inside of layers after the model's last."""
    last = list(transformers_private.decoder_layers(model))[-1]
    stem, _, count = last.rpartition(".")
    present = "|".join(str(i) for i in range(int(count) + 1))
    return re.compile(rf"{re.escape(stem)}\.(?!(?:{present})\.)\d+\.")
