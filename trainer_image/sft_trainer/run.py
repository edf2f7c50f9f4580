"""What a run is, and where: filled by the launcher's rank from the plan, or by `Trainer` from its arguments."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_trainer.datasets.config import DataloaderConfig, EvaluationConfig
from sft_trainer.datasets.template import chat_template_named
from sft_trainer.model import FolderConfig, ModelConfig
from sft_trainer.model.weight_files import weights_fingerprint
from sft_trainer.storage.fence import Fence
from sftjob.base import digest
from sftjob.manifest import EvaluationRecord
from sftjob.options import (
    AdamWConfig,
    CELossConfig,
    FSDPConfig,
    LoRAConfig,
    LRConfig,
    OutputFormat,
    Precision,
    SaveMode,
    Tracker,
)


@dataclass(frozen=True)
class RunOptions:
    """Everything that decides the numbers."""

    model_cfg: ModelConfig | FolderConfig
    load_from: str | None
    tokenizer_path: str
    dataloader_cfg: DataloaderConfig
    optim_cfg: AdamWConfig
    lr_cfg: LRConfig
    loss_cfg: CELossConfig
    fsdp_cfg: FSDPConfig
    global_batch_size: int
    """In packs; a multiple of the number of ranks."""
    total_epoch: int | None
    total_step: int | None
    """At most one of the two is set; neither is one epoch."""
    precision: Precision
    seed: int
    lora_cfg: LoRAConfig | None = None
    """Not without `load_from`."""
    base_repository: str | None = None
    """Where `load_from` was downloaded from: a hub's repository, or a place in a bucket."""
    base_revision: str | None = None
    """The commit of a hub's repository."""

    @property
    def chat_template(self) -> str | None:
        """Text of the template that replaces the tokenizer's own, in training and in the exported model."""
        name = self.dataloader_cfg.chat_template
        return chat_template_named(name) if name else None

    @property
    def evaluation(self) -> EvaluationConfig | None:
        return self.dataloader_cfg.evaluation

    def digest(self) -> str:
        """Two runs with the same digest and the same data train the same; the number of ranks may differ.

        With LoRA it reads parts of the base model, whose weights no checkpoint holds.
        """
        adapted = {}
        if self.lora_cfg and self.load_from:
            adapted = {"lora": self._lora(self.lora_cfg), "base": weights_fingerprint(self.load_from)}
        return digest(
            adapted
            | {
                "model": self.model_cfg.hf_config(),
                "scratch": self.load_from is None,
                "optimizer": self._optimizer(),
                "schedule": self.lr_cfg.to_json_dict(),
                "batch": self.global_batch_size,
                "length": [self.total_epoch, self.total_step],
                # Without patience an evaluation changes nothing; what it holds out is in the data's digest.
                "stop": [self.evaluation.every_steps, self.evaluation.patience]
                if self.evaluation and self.evaluation.patience
                else None,
                "precision": self.precision,
                "seed": self.seed,
            }
        )

    def to_json_dict(self) -> dict[str, Any]:
        """What a tracker tells of them."""
        return {
            "model": self.base_repository or self.load_from or "from scratch",
            "optimizer": self.optim_cfg.to_json_dict(),
            "lrSchedule": self.lr_cfg.to_json_dict(),
            "loss": self.loss_cfg.to_json_dict(),
            "fsdp": self.fsdp_cfg.to_json_dict(),
            "lora": self.lora_cfg and self.lora_cfg.to_json_dict(),
            "globalBatchSize": self.global_batch_size,
            "packLength": self.dataloader_cfg.pack_max_length,
            "totalEpoch": self.total_epoch,
            "totalStep": self.total_step,
            "precision": self.precision,
            "seed": self.seed,
        }

    def _optimizer(self) -> dict[str, Any]:
        """Without what is newer than some runs and changes nothing in them: those must go on."""
        config = self.optim_cfg.to_json_dict()
        if config["moments"] == "fp32":
            del config["moments"]
        return config

    def _lora(self, lora_cfg: LoRAConfig) -> dict[str, Any]:
        """As `_optimizer`."""
        config = lora_cfg.to_json_dict()
        if config["quantize"] == "none":
            del config["quantize"]
        return config


@dataclass(frozen=True)
class Export:
    """A folder for the trained model; published by the caller."""

    folder: Path
    format: OutputFormat
    dtype: Precision = "auto"


@dataclass(frozen=True)
class Tracking:
    """Which trackers get a run's curves, and what the run is called there."""

    report_to: Sequence[Tracker]
    run_id: str
    """The same in every attempt, and of no other run."""
    run_name: str


@dataclass(frozen=True)
class RunPlace:
    """Where a run keeps its state, and who may write there."""

    fence: Fence
    resume: bool
    """Go on from the newest checkpoint that verifies."""
    exports: list[Export]
    """What is written at the end."""
    checkpoint_interval: int | None
    """In steps."""
    saves_by_clock: bool
    """Where no interval says when (`train.save_clock`); else at the end only."""
    keep_last: int
    save_mode: SaveMode
    shortages: int
    """Attempts before this one that memory was too small for: each has halved the micro-batches."""
    grace_seconds: float
    """From SIGTERM until the process is killed."""
    scratch: Path | None
    """The launcher's, for progress; None without one."""
    tracking: Tracking


@dataclass
class RunState:
    """How far it came: the rank's last words are made of this, whatever ends it."""

    resumed_from: int | None = None
    last_step: int = 0
    saved_step: int | None = None
    loss: float | None = None
    """Mean over the trained tokens of the last step; None where it was not finite."""
    evaluation: EvaluationRecord | None = None
    skipped_steps: int = 0
    non_finite_steps: int = 0
    """In a row, up to the last step."""
    final_digest: str | None = None
    save_seconds: float = field(default=0.0)
