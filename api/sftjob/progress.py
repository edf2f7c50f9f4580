"""What a running attempt tells about itself: the file that rank 0 writes, the launcher serves and operators read."""

from datetime import datetime
from enum import StrEnum

from sftjob.base import Record


class Stage(StrEnum):
    FENCING = "Fencing"
    PREPARING_DATA = "PreparingData"
    STARTING = "Starting"
    LOADING_MODEL = "LoadingModel"
    LOADING_CHECKPOINT = "LoadingCheckpoint"
    COMPILING = "Compiling"
    TRAINING = "Training"
    SAVING = "Saving"
    EXPORTING = "Exporting"
    PUBLISHING = "Publishing"


class Progress(Record):
    """Advisory: it never changes a job's phase."""

    attempt: int
    stage: Stage
    detail: str | None = None
    """What the stage is at, for people: `812 of 1319 rows`."""
    step: int = 0
    """The last finished optimiser step."""
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    resumed_from: int | None = None
    saved_step: int | None = None
    """The newest checkpoint of this run that is published and verified."""
    skipped_checkpoints: list[str] = []
    """Newer checkpoints that did not verify when this attempt resumed, each with what was wrong."""
    pod_uid: str | None = None
    reported_at: datetime
