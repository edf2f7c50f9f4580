"""Proof at load that this model keeps packed documents apart, and that the loss is that of its own logits.

A hundred of the library's causal models take our attention and are right, some dozens take it and are silently wrong (a
window that exists in a mask only, a convolution over document borders); docs/architectures.md lists them. So each model
is asked. Called by the Trainer on every rank together: each forward gathers shards.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from sft_trainer.model import transformers_private
from sft_trainer.model.evaluating import evaluating
from sft_trainer.packed import PackedBatch
from sftjob.failure import JobFailure, Reason

_LENGTH = 9
# Shorter than a document of the probe, so that a layer's window shows.
_WINDOW = 4
_WINDOWS = ("sliding_window", "attention_chunk_size")

# Relative to the norm of the logits. Of bf16 each of some dozens of layers rounds at 2^-8.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
# Between two runs of ours: bit-equal, but for experts, whose products change with the sizes of their groups, grouped or
# one after the other.
_EXPERTS_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


def probe(model: torch.nn.Module, *, vocab_size: int) -> None:
    """Raises JobFailure(INVALID_CONFIGURATION) with the model type and the property that does not hold."""
    assert isinstance(model, PreTrainedModel)
    device = next(model.parameters()).device
    # The same on every rank.
    generator = torch.Generator().manual_seed(0)
    documents = torch.randint(vocab_size, (2, _LENGTH), generator=generator)
    others = torch.randint(vocab_size, (1, _LENGTH), generator=generator)
    others = torch.where(others == documents[:1], (others + 1) % vocab_size, others)
    batch = _packed(documents, device=device)
    perturbed = _packed(torch.cat([others, documents[1:]]), device=device)

    with evaluating(model), _short_windows(model), _uncompiled(model):
        try:
            loss = model(batch)
        except (AttributeError, TypeError, ValueError) as error:
            # What the library's models raise that want a mask, or a kernel that is not installed (and say which).
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise _refused(model, f"its forward fails on packed documents ({said})") from error
        packed = model(batch, output="logits")[0].unflatten(0, (2, _LENGTH))
        after = model(perturbed, output="logits")[0].unflatten(0, (2, _LENGTH))
        with _own_attention(model):
            own = model(_as_rows(documents, device=device), output="own_logits")

    dtype = torch.bfloat16 if own.dtype == torch.bfloat16 else torch.float32
    has_experts = any(parameter.ndim == 3 for parameter in model.parameters()) or any(
        name.rpartition(".")[2] == "experts" for name, _ in model.named_modules()
    )
    if not _close(after[1], packed[1], _EXPERTS_TOLERANCE[dtype] if has_experts else 0.0):
        raise _refused(model, "a change in one document of a pack changes the logits of another")
    if not _close(packed, own, _TOLERANCE[dtype]):
        raise _refused(model, "the logits of packed documents differ from those that the model computes for each alone")
    expected = F.cross_entropy(own.float().flatten(0, 1), batch.labels[0], ignore_index=-100, reduction="sum")
    if not _close(loss, expected, _TOLERANCE[dtype]):
        raise _refused(
            model, f"the loss is {loss.item():.6g} where that of the model's own logits is {expected.item():.6g}"
        )


def _packed(documents: torch.Tensor, *, device: torch.device) -> PackedBatch:
    rows, length = documents.shape
    labels = torch.cat([documents[:, 1:], torch.full((rows, 1), -100)], dim=1)
    return PackedBatch(
        input_ids=documents.reshape(1, -1),
        position_ids=torch.arange(length).repeat(rows).unsqueeze(0),
        labels=labels.reshape(1, -1),
        trained_rows=(labels.flatten() != -100).nonzero()[:, 0],
        cu_seqlens=torch.arange(0, rows * length + 1, length, dtype=torch.int32),
    ).to(device)


def _as_rows(documents: torch.Tensor, *, device: torch.device) -> PackedBatch:
    """For the model's own forward, which takes the first field only."""
    nothing = torch.empty(0)
    return PackedBatch(
        input_ids=documents, position_ids=nothing, labels=nothing, cu_seqlens=nothing, trained_rows=nothing
    ).to(device)


def _close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> bool:
    """NaN is close to nothing."""
    difference = (ours.float() - theirs.float()).norm()
    return bool(difference <= tolerance * theirs.float().norm())


def _refused(model: PreTrainedModel, what: str) -> JobFailure:
    return JobFailure(
        Reason.INVALID_CONFIGURATION,
        f"model: {model.config.model_type} can't be trained here: {what}; use another model",
    )


@contextmanager
def _uncompiled(model: PreTrainedModel) -> Iterator[None]:
    """These shapes never come again."""
    # Even to ask costs a second, for the import of the compiler.
    if not transformers_private.is_compiled(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _own_attention(model: PreTrainedModel) -> Iterator[None]:
    ours = transformers_private.attention_name(model)
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(ours)


@contextmanager
def _short_windows(model: PreTrainedModel) -> Iterator[None]:
    """Shorten every window, where it stands: in layers, and in configurations, from which masks are made."""
    holders = {id(holder): holder for module in model.modules() for holder in (module, getattr(module, "config", None))}
    found = [
        (holder, name, width)
        for holder in holders.values()
        for name in _WINDOWS
        if isinstance(width := getattr(holder, name, None), int) and width > _WINDOW
    ]
    for holder, name, _ in found:
        setattr(holder, name, _WINDOW)
    try:
        yield
    finally:
        for holder, name, width in found:
            setattr(holder, name, width)
