"""What a running attempt tells about itself: the file that rank 0 writes, the launcher serves and operators read."""

from enum import StrEnum

from pydantic import AwareDatetime

from sftjob.base import Record, Whole


class Stage(StrEnum):
    FENCING = "Fencing"
    PREPARING_DATA = "PreparingData"
    STARTING = "Starting"
    RUNNING_SCRIPT = "RunningScript"
    LOADING_MODEL = "LoadingModel"
    LOADING_CHECKPOINT = "LoadingCheckpoint"
    COMPILING = "Compiling"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    SAVING = "Saving"
    EXPORTING = "Exporting"
    PUBLISHING = "Publishing"


class Progress(Record):
    """Advisory: it never changes a job's phase."""

    attempt: Whole
    """Number of the attempt that reports."""
    stage: Stage
    """What it is doing."""
    detail: str | None = None
    """What the stage is at, for people: `812 of 1319 rows`."""
    step: Whole = 0
    """The last finished optimiser step."""
    total_steps: Whole | None = None
    """Optimiser steps of the whole run."""
    epoch: float | None = None
    """Passes over the data so far."""
    loss: float | None = None
    """Cross-entropy a trained token, in the last finished step."""
    learning_rate: float | None = None
    """Of the last finished step."""
    grad_norm: float | None = None
    """Of the last finished step, before clipping."""
    skipped_steps: Whole = 0
    """Steps of this run that changed nothing, for the norm of their gradient."""
    eval_loss: float | None = None
    """Cross-entropy a trained token of the data that is never trained on, at the last evaluation."""
    best_eval_loss: float | None = None
    """The lowest of these so far."""
    best_step: Whole | None = None
    """The step that had it."""
    tokens_per_second: float | None = None
    """Over all ranks."""
    eta_seconds: Whole | None = None
    """Time that training still takes."""
    resumed_from: Whole | None = None
    """The checkpoint's step that this attempt went on from; absent from the start."""
    saved_step: Whole | None = None
    """The newest checkpoint of this run that is published and verified."""
    skipped_checkpoints: list[str] = []
    """Newer checkpoints that did not verify when this attempt resumed, each with what was wrong."""
    pod_uid: str | None = None
    """Of the pod that reports; absent outside a cluster."""
    reported_at: AwareDatetime
