"""The loss of data that is never trained on, and what follows from it: the best step, an early end.

Called by the loop on every rank together; every rank gets the same numbers, on any number of ranks.
"""

import math
from collections.abc import Callable

import torch

from sft_trainer.datasets.batch import BatchStream
from sft_trainer.datasets.config import EvaluationConfig
from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.model.evaluating import evaluating
from sft_trainer.train.world import World
from sftjob.failure import JobFailure, Reason
from sftjob.manifest import EvaluationRecord


def refuse_choice_without_checkpoints(config: EvaluationConfig, *, checkpoint_interval: int | None) -> None:
    """A spec can't ask for it; a script's Trainer can. Raises JobFailure(INVALID_CONFIGURATION)."""
    if config.export_best and (checkpoint_interval is None or checkpoint_interval % config.every_steps):
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"checkpoint_interval: {checkpoint_interval} is not a multiple of evaluation's every_steps, "
            f"{config.every_steps}, so export_best would have no evaluated checkpoints to choose from; use a multiple, "
            "or leave export_best out",
        )


class Evaluation:
    def __init__(
        self,
        config: EvaluationConfig,
        data: PreparedData,
        *,
        world: World,
        pad_to: int | None,
        pads_by_halves: bool,
    ) -> None:
        self._config, self._world = config, world
        # One pass: where packs run out, a rank gets pads, so that none waits in a collective for another.
        self._stream = BatchStream(
            data,
            seed=0,
            global_batch_size=world.size,
            world_size=world.size,
            rank=world.rank,
            pad_to=pad_to,
            pads_by_halves=pads_by_halves,
            total_epoch=1,
        )
        self._trained_tokens = data.receipt.trained_tokens

    @property
    def exports_best(self) -> bool:
        return self._config.export_best

    def is_due(self, step: int, *, total_steps: int, record: EvaluationRecord | None) -> bool:
        """After `step`; false where `record` already has it, as in a checkpoint that was saved after its evaluation."""
        if step == 0 or (record and record.step == step):
            return False
        return step % self._config.every_steps == 0 or step == total_steps

    def mean_loss(self, model: torch.nn.Module, *, halvings: int, between_batches: Callable[[str], None]) -> float:
        """Over all trained tokens, however they are packed: one sum by one count, both over all ranks.

        `halvings` of what goes through the model at a time, as in training.
        `between_batches` hears how far it is: `12 of 96 batches`.
        """
        total, batches = 0.0, self._stream.total_steps(1)
        for index in range(1, batches + 1):
            # Left for every pack: a stop may save in between, and a gathered model must not be saved.
            with evaluating(model):
                batch_parts = self._stream.micro_batches(index, halvings=halvings)
                total += sum(model(part.to(self._world.device)).item() for part in batch_parts)
            between_batches(f"{index} of {batches} batches")
        return self._world.sum(total) / self._trained_tokens

    def ends_training(self, record: EvaluationRecord) -> bool:
        return self._config.patience is not None and record.without_improvement >= self._config.patience


def following(record: EvaluationRecord | None, *, step: int, loss: float) -> EvaluationRecord:
    """The record after one more evaluation. Raises JobFailure for a loss that no later one can be compared with."""
    if not math.isfinite(loss):
        raise JobFailure(
            Reason.NON_FINITE_GRADIENT,
            f"step {step}: the evaluation loss is {loss}; lower spec.training.optimizer.lr",
        )
    if record is None or loss < record.best_loss:
        return EvaluationRecord(step=step, loss=loss, best_step=step, best_loss=loss, without_improvement=0)
    return record.model_copy(update={"step": step, "loss": loss, "without_improvement": record.without_improvement + 1})
