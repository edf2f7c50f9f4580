"""Every training option, declared once.

The custom resource, the Python API (`sft_trainer.config` re-exports these classes) and the reference page derive
from these fields. Names follow XTuner V1 where it has one.
"""

from typing import Annotated, Literal

from pydantic import Field

from sftjob.base import Declared

Fraction = Annotated[float, Field(ge=0, le=1)]


class AdamWConfig(Declared):
    """AdamW (Loshchilov and Hutter, 2019) with gradient clipping."""

    lr: float = Field(default=6e-5, ge=0, description="Peak learning rate.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay, on matrices only.")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.95), description="Decay of the two moment averages.")
    eps: float = Field(default=1e-8, gt=0, description="Added to the denominator of the update.")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Global gradient norm above which gradients are scaled."
    )


class LRConfig(Declared):
    """The learning rate as a function of the step: linear warm-up, then one of three shapes."""

    lr_type: Literal["constant", "cosine", "linear"] = Field(default="cosine", description="Shape after the warm-up.")
    lr_min: float = Field(default=1e-6, ge=0, description="Learning rate at the last step (cosine and linear).")
    warmup_ratio: float = Field(
        default=0.03, ge=0, description="Below 1: this fraction of all steps. From 1 on: this many steps."
    )


class FSDPConfig(Declared):
    """Sharding of parameters, gradients and optimiser state over all ranks (FSDP2); nothing on one process."""

    reshard_after_forward: bool = Field(
        default=True, description="Free a layer's gathered parameters between its forward and its backward."
    )
    torch_compile: bool | None = Field(
        default=None, description="Compile each layer. Absent: on a GPU yes, on a CPU no, where it does not pay."
    )


class CELossConfig(Declared):
    """Cross-entropy over trained tokens, divided by their number over all ranks and accumulation steps."""

    mode: Literal["eager", "chunk"] = Field(
        default="chunk", description="chunk: the logits of `chunkSize` tokens exist at a time. eager: all at once."
    )
    chunk_size: int = Field(default=1024, ge=1, description="Tokens per chunk.")


Precision = Literal["auto", "fp32", "bf16"]
Overlong = Literal["truncate", "drop", "error"]
PackLevel = Literal["soft", "none"]
