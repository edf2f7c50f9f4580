"""A complete Hugging Face folder, or an adapter's, from a model in training. Called by every rank, at the end of a run.

Weights are gathered one by one; rank 0 alone keeps them (in the dtype of the export, in host memory) and writes.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils.hub import CHAT_TEMPLATE_DIR

from sft_trainer.datasets.special import SpecialTokens
from sft_trainer.model import nf4, transformers_private
from sftjob.failure import JobFailure, storage_reason
from sftjob.options import Precision

MAX_SHARD_BYTES = 5_000_000_000

_DTYPES = {"auto": "float32", "fp32": "float32", "bf16": "bfloat16"}

_GENERATION_CONFIG = "generation_config.json"
_GENERATION_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Copied, not saved anew: a tokenizer that transformers 5 has rewritten is unreadable to programs on transformers 4.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def export_model(
    model: torch.nn.Module,
    folder: Path,
    *,
    source: str | None,
    tokenizer_path: str,
    chat_template: str | None = None,
    special: SpecialTokens | None = None,
    dtype: Precision = "auto",
) -> None:
    """Write safetensors, config, generation config, tokenizer and chat template into `folder`, which rank 0 creates.

    LoRA is merged into the weights that training computed with. `source` is the folder that training started from: with
    `dtype` auto its dtype is the export's (its bf16 model stays one in bf16), fp32 without it; config.json says which.
    `chat_template` (its text) replaces the tokenizer's. Generation ends at `special`'s end too, and a model from
    scratch has all of its tokens; without it the generation config is that of `source`, as it is. Rank 0 returns when
    all is written, the others when all is gathered: the caller publishes after rank 0. Raises JobFailure there:
    STORAGE_FULL or STORAGE_UNAVAILABLE.
    """
    assert isinstance(model, PreTrainedModel)
    fields: dict[str, Any] = model.config_json
    dtype_name = _DTYPES[dtype]
    if dtype == "auto" and source is not None:
        dtype_name = fields.get("dtype") or fields.get("torch_dtype") or dtype_name
    writes = not dist.is_initialized() or dist.get_rank() == 0
    tensors = _gathered(model, dtype=getattr(torch, dtype_name), keeps=writes)
    if not writes:
        return
    written = {key: value for key, value in fields.items() if key not in ("dtype", "torch_dtype", "auto_map")}
    if source is None and special is not None:
        written = special.by_field | written
    spelled = "torch_dtype" if "torch_dtype" in fields else "dtype"
    with _written_to(folder):
        _write_weights(transformers_private.to_saved_layout(model, tensors), folder)
        _write_json(folder / "config.json", written | {"architectures": [_class_name(model)], spelled: dtype_name})
        _write_generation_config(folder, source=source, fields=written, special=special)
        _write_tokenizer(folder, tokenizer_path=tokenizer_path, chat_template=chat_template)


def export_adapter(
    model: torch.nn.Module,
    folder: Path,
    *,
    base: str,
    revision: str | None = None,
    tokenizer_path: str,
    chat_template: str | None = None,
    dtype: Precision = "auto",
) -> None:
    """Write what LoRA learnt as peft stores it, with tokenizer and chat template; see `export_model`.

    `base` is where peft is to look for the adapted model: a hub's repository, at `revision`, or a folder. With `dtype`
    auto in fp32, as it was trained.
    """
    from sft_trainer.model import lora

    assert isinstance(model, PreTrainedModel)
    writes = not dist.is_initialized() or dist.get_rank() == 0
    tensors = lora.adapter_tensors(model, keeps=writes)
    if not writes:
        return
    kept = {name: tensor.to(getattr(torch, _DTYPES[dtype])).contiguous() for name, tensor in tensors.items()}
    with _written_to(folder):
        save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        lora.adapter_config(model, base=base, revision=revision).save_pretrained(str(folder))
        _write_tokenizer(folder, tokenizer_path=tokenizer_path, chat_template=chat_template)


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        # What safetensors raises has the number in its words alone.
        number = re.search(r"\(os error (\d+)\)", str(error))
        cause = error if isinstance(error, OSError) else OSError(int(number[1]) if number else None, str(error))
        raise JobFailure(
            storage_reason(cause),
            f"spec.output: writing {folder} failed ({error}); free some room, or check the volume: the next attempt "
            "writes it from the last checkpoint",
        ) from error


@torch.no_grad()
def _gathered(model: PreTrainedModel, *, dtype: torch.dtype, keeps: bool) -> dict[str, torch.Tensor]:
    """Whole tensors on the host of the rank that `keeps`, without those tied to others."""
    tied = transformers_private.tied_weights(model)
    tensors = {}
    with _without_adapters(model) as merged:
        cast = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        cast -= transformers_private.kept_in_fp32(model, dtype=dtype).keys()
        packed = nf4.quantisers(model).keys()
        for name, tensor in model.state_dict().items():
            if name in tied:
                continue
            module, _, of_module = name.rpartition(".")
            # An all-gather over the mesh, by every rank, in the order of the state dict, which is the same on all.
            if module in merged and of_module == "weight":
                whole = merged[module]()
            elif name in packed:
                whole = model.get_submodule(module).whole_weight()
            else:
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if keeps:
                # Routers, and buffers (an expert's correction bias), keep the precision that the model wants for them.
                tensors[name] = whole.to("cpu", dtype if name in cast else whole.dtype)
    return tensors


def _without_adapters(model: PreTrainedModel) -> AbstractContextManager[dict[str, Callable[[], torch.Tensor]]]:
    """See `lora.unwrapped`, which a job without adapters does not import."""
    if not hasattr(model, "peft_config"):
        return nullcontext({})
    from sft_trainer.model import lora

    return lora.unwrapped(model)


def _write_generation_config(
    folder: Path, *, source: str | None, fields: Mapping[str, Any], special: SpecialTokens | None
) -> None:
    """That of `source`, or what the library makes of config.json, with the end that the model was trained to write."""
    content = _generation_config(source)
    if content is None:
        content = {name: fields[name] for name in _GENERATION_FIELDS if fields.get(name) is not None}
    ends = content.get("eos_token_id")
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if special is not None and special.end is not None and special.end not in known:
        content = content | {"eos_token_id": [*known, special.end] if known else special.end}
    elif source is not None:
        _copy(Path(source), folder, names=[_GENERATION_CONFIG])
        return
    if content:
        _write_json(folder / _GENERATION_CONFIG, content)


def _generation_config(source: str | None) -> dict[str, Any] | None:
    """None where there is none that can be read: a trained model is not lost for it."""
    try:
        content = json.loads((Path(source) / _GENERATION_CONFIG).read_text(encoding="utf-8")) if source else None
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write_tokenizer(folder: Path, *, tokenizer_path: str, chat_template: str | None) -> None:
    _copy(Path(tokenizer_path), folder, names=_TOKENIZER_FILES)
    others = Path(tokenizer_path) / CHAT_TEMPLATE_DIR
    if chat_template is None and others.is_dir():
        shutil.copytree(others, folder / CHAT_TEMPLATE_DIR, copy_function=shutil.copyfile, dirs_exist_ok=True)
    if chat_template is not None:
        # Without the others: transformers would take one of them for a chat with tools.
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _write_weights(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=MAX_SHARD_BYTES
    )
    for name, keys in split.filename_to_tensors.items():
        save_file({key: tensors[key].contiguous() for key in keys}, folder / name, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(folder / "model.safetensors.index.json", index)


def _class_name(model: PreTrainedModel) -> str:
    """FSDP2 has put its own name before that of the class."""
    return type(model).__name__.removeprefix("FSDP")


def _copy(source: Path, folder: Path, *, names: Iterable[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
