"""What a rank's tensors need: told by the Trainer before its first step, and to `sft train --dry-run`, which asks."""

from typing import Literal

from sftjob.base import Record
from sftjob.spec import SFTJobSpec


class MemoryTask(Record):
    spec: SFTJobSpec
    folder: str | None = None
    """Where `model.loadFrom` lies on this machine. None: the preset is looked at, or without one a hub is asked."""


class MemoryEstimate(Record):
    """Bytes of one rank. The allocator's overhead, and layers that are gathered for a moment, come on top."""

    precision: Literal["fp32", "bf16"]
    """Of the activations."""
    pack_tokens: int
    weights: int
    gradients: int
    moments: int
    gathered: int = 0
    """Of several ranks: what stands outside of layers is whole on each from the forward to the backward."""
    activations: int | None = None
    """What the forward of one full pack keeps for its backward; None where the layers are not of a known form."""
    logits: int
    """Of the loss: logits or their gradient, and the head's gradient that is summed over chunks."""

    @property
    def kinds(self) -> dict[str, int | None]:
        names = ("weights", "gradients", "moments", "gathered", "activations", "logits")
        return {name: getattr(self, name) for name in names}

    @property
    def is_least(self) -> bool:
        """`together` is less than what is needed: it lacks the activations."""
        return self.activations is None

    @property
    def fixed(self) -> int:
        """What does not depend on how many tokens go through the model at a time, and is exact."""
        return self.weights + self.gradients + self.moments

    @property
    def together(self) -> int:
        return sum(filter(None, self.kinds.values()))
