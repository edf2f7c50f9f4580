"""Weights & Biases, by its own library: it keeps what it could not send in the attempt's folder, for `wandb sync`."""

import os
from collections.abc import Mapping

import wandb

from sft_trainer.tracking.run import PROJECT, TrackedRun


class WeightsAndBiases:
    def __init__(self, run: TrackedRun) -> None:
        """Waits for the server, unless WANDB_MODE is offline. Raises wandb.Error."""
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.name,
            resume="allow",
            config=dict(run.config),
            dir=str(run.folder),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
