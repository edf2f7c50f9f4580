"""trackio, by its own library: a database in `<storage>/trackio/`, or the Space or server that its variables name."""

import os
from collections.abc import Mapping

from sft_trainer.tracking.run import PROJECT, TrackedRun
from sftjob import names


class Trackio:
    def __init__(self, run: TrackedRun) -> None:
        # Read by the library when it is imported. A pod's own disk ends with the attempt.
        os.environ.setdefault("TRACKIO_DIR", str(run.storage / names.TRACKIO))
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            # A name is all that it finds a run by.
            name=f"{run.name}-{run.id[:8]}",
            resume="allow",
            config=dict(run.config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
