"""Weights & Biases, by its own library: it keeps what it could not send in the attempt's folder, for `wandb sync`."""

import os
from collections.abc import Mapping

import wandb

from sft_trainer.tracking.run import EVALUATION_LOSS, PROJECT, TrackedRun

_EVALUATED_STEP = "eval/step"


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
        # A resumed run takes nothing for the step that it had last, and that one's evaluation may come then.
        self._run.define_metric(_EVALUATED_STEP, hidden=True)
        self._run.define_metric("eval/*", step_metric=_EVALUATED_STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if EVALUATION_LOSS in values:
            # With the next step's line, or at the end.
            self._run.log({**values, _EVALUATED_STEP: step}, commit=False)
        else:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
