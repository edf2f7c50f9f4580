"""Every training option, declared once.

The custom resource, the Python API (`sft_trainer.config` re-exports these classes) and the reference page derive
from these fields. Names follow XTuner V1 where it has one.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sftjob.base import Declared
from sftjob.rules import MOMENTS_CAN_DECAY, rules

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Declared):
    """AdamW (Loshchilov and Hutter, 2019) with gradient clipping."""

    model_config = rules(MOMENTS_CAN_DECAY)

    lr: float = Field(default=6e-5, ge=0, description="Peak learning rate.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay, on matrices only.")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.95), description="Decay of the two moment averages.")
    eps: float = Field(default=1e-8, gt=0, description="Added to the denominator of the update.")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Global gradient norm above which gradients are scaled."
    )
    skip_grad_norm_threshold: float | None = Field(
        default=None,
        gt=0,
        description="Global gradient norm above which a step changes nothing, and is counted. Absent: none is too "
        "large. A norm that is not finite is always skipped; the third such step in a row ends the job.",
    )
    moments: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="How the two moment averages are kept between steps; they are updated in fp32. bf16 takes half of "
        "their memory, and needs a second beta of at most 0.99.",
    )

    @model_validator(mode="after")
    def _moments(self) -> Self:
        if self.moments == "bf16" and self.betas[1] > 0.99:
            raise ValueError(MOMENTS_CAN_DECAY.told(beta=self.betas[1]))
        return self


class LRConfig(Declared):
    """The learning rate as a function of the step: linear warm-up, then one of three shapes."""

    lr_type: Literal["constant", "cosine", "linear"] = Field(default="cosine", description="Shape after the warm-up.")
    lr_min: float = Field(
        default=1e-6,
        ge=0,
        description="Learning rate at the last step (cosine and linear), at most the peak. Absent: the peak, if lower.",
    )
    warmup_ratio: float = Field(
        default=0.03, ge=0, description="Below 1: this fraction of all steps. From 1 on: this many steps."
    )

    def ends_above(self, peak: float) -> bool:
        """Whether an `lr_min` that was set is above it."""
        return self.lr_min > peak and self.lr_min != type(self).model_fields["lr_min"].default


class FSDPConfig(Declared):
    """Sharding of parameters, gradients and optimiser state over all ranks (FSDP2); nothing on one process."""

    reshard_after_forward: bool = Field(
        default=True, description="Free a layer's gathered parameters between its forward and its backward."
    )
    torch_compile: bool | None = Field(
        default=None,
        description="Compile each layer; on one GPU, in bf16, also launch them as CUDA graphs where there is room. "
        "Absent: on a GPU yes, on a CPU no, where it does not pay.",
    )
    recompute_ratio: Fraction = Field(
        default=0.0,
        description="Fraction of the layers, evenly spread, that keep no activations and compute them again in the "
        "backward: 0 none, 0.5 every second layer, 1 all. Less memory, more time; also on one process.",
    )
    recompute_selectively: bool = Field(
        default=False,
        description="Selective activation checkpointing: the other layers keep the results of matrix products and "
        "attention, and compute what is cheap again in the backward (norms, activations, rotary embeddings).",
    )


class CELossConfig(Declared):
    """Cross-entropy over trained tokens, divided by their number over all ranks and accumulation steps."""

    mode: Literal["eager", "chunk"] = Field(
        default="chunk", description="chunk: the logits of `chunkSize` tokens exist at a time. eager: all at once."
    )
    chunk_size: int = Field(default=1024, ge=1, description="Tokens per chunk.")


ModuleName = Annotated[str, Field(min_length=1, max_length=256)]


class LoRAConfig(Declared):
    """LoRA (Hu et al., 2021): the model stays as it is, a pair of low-rank matrices beside each linear module learns.

    A module's weight W acts as W + scale * B A, where A and B are of `rank`, and B begins as 0.
    """

    rank: int = Field(default=16, ge=1, le=4096, description="Rows of A and columns of B, for every adapted module.")
    alpha: int = Field(default=32, ge=1, description="The scale is alpha / rank.")
    rslora: bool = Field(
        default=False, description="The scale is alpha / sqrt(rank) (Kalajdzievski, 2023): high ranks learn as well."
    )
    dora: bool = Field(
        default=False, description="Also learn the length of each row of W + scale * B A (Liu et al., 2024). Slower."
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of each adapter's inputs that is left out, at random, in training."
    )
    quantize: Literal["none", "nf4"] = Field(
        default="none",
        description="How the model's own linear matrices are held, but for the head: nf4 (QLoRA; Dettmers et al., "
        "2023) in 4 bits with scales of 8, a quarter of bf16, whole on each rank. Computed as in `precision`. Needs an "
        "NVIDIA GPU; the experts of a mixture stay as they are.",
    )
    target_modules: list[ModuleName] = Field(
        default=[],
        max_length=64,
        description="Names, or ends of names, of the linear modules to adapt, as q_proj. Absent: all but the head; "
        "the experts of a mixture are none.",
    )
    modules_to_save: list[ModuleName] = Field(
        default=[],
        max_length=64,
        description="Names, or ends of names, of modules to train whole besides, as embed_tokens or lm_head.",
    )


class EvaluationOptions(Declared):
    """When the loss of data that is never trained on is taken, and what follows from it."""

    fraction: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="Of the training samples: a seeded choice is held out, evaluated and never trained on.",
    )
    every_steps: int = Field(
        default=100, ge=1, description="Optimiser steps from one evaluation to the next; the last step is one too."
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Evaluations in a row without a new lowest loss after which training ends. Absent: never early.",
    )
    export_best: bool = Field(
        default=False,
        description="The model that comes out is that of the checkpoint with the lowest evaluation loss, not that of "
        "the last step. Every checkpoint must be evaluated.",
    )


Precision = Literal["auto", "fp32", "bf16"]
BadLineBudget = Annotated[
    int,
    Field(
        ge=0,
        le=1_000_000_000,
        description="Rows, over all datasets, that may be skipped because they can't be used; each is counted, the "
        "first are told. One more ends the job.",
    ),
]
Tracker = Literal["tensorboard", "wandb", "trackio"]
ReportTo = Annotated[
    list[Tracker],
    Field(
        max_length=3,
        description="Where curves go besides metrics.jsonl. tensorboard: event files in `checkpoint.storage`. wandb "
        "and trackio: by their own libraries, which the image must have, and their own variables in `compute.env`, as "
        "WANDB_API_KEY or TRACKIO_SPACE_ID. What they can't take is lost; training goes on.",
    ),
]
OutputFormat = Literal["hf", "adapter"]
SaveMode = Literal["sync", "async"]
Overlong = Literal["truncate", "drop", "split", "error"]
PackLevel = Literal["soft", "hard", "none"]
RowFormat = Literal["auto", "messages", "sharegpt", "prompt-completion", "alpaca", "text"]
