"""What a running attempt tells about itself: the file that rank 0 writes, the launcher serves and operators read."""

from pydantic import AwareDatetime

from sftjob.base import OpenWord, Record, Whole
from sftjob.failure import Reason
from sftjob.receipt import DataReceipt


class Stage(OpenWord):
    FENCING = "Fencing"
    DOWNLOADING_MODEL = "DownloadingModel"
    DOWNLOADING_DATA = "DownloadingData"
    PREPARING_DATA = "PreparingData"
    STARTING = "Starting"
    RUNNING_SCRIPT = "RunningScript"
    LOADING_MODEL = "LoadingModel"
    LOADING_CHECKPOINT = "LoadingCheckpoint"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    SAVING = "Saving"
    EXPORTING = "Exporting"
    PUBLISHING = "Publishing"


class Resolved(Record):
    """Commits of a hub's repositories, as the first attempt found them: later attempts take the same.

    Of what lies in a bucket, the digest of its objects' names, sizes and ETags.
    """

    model_revision: str | None = None
    """Of `spec.model.loadFrom`."""
    tokenizer_revision: str | None = None
    """Of `spec.model.tokenizer`."""
    data_revisions: list[str] = []
    """Of each dataset, those of evaluation after the others; empty for one that is neither a hub's nor in a bucket."""


class EndBefore(Record):
    """How the attempt before ended, by the launcher of it that ended first and left its last words in storage."""

    attempt: Whole
    node_rank: Whole
    reason: Reason
    exit_code: Whole
    message: str = ""
    rank: Whole | None = None
    signal: Whole | None = None
    log_tail: str = ""
    ended_at: AwareDatetime


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
    micro_batch_tokens: Whole | None = None
    """Tokens that go through the model at a time, at most, but for a longer document: memory ran out with more. Absent
    while whole packs do."""
    eval_loss: float | None = None
    """Cross-entropy a trained token of the data that is never trained on, at the last evaluation."""
    best_eval_loss: float | None = None
    """The lowest of these so far."""
    best_step: Whole | None = None
    """The step that had it."""
    tokens_per_second: float | None = None
    """Over all ranks."""
    mfu: float | None = None
    """Model FLOPs utilisation of the last finished step: the share of the GPUs' dense bf16 limit that went into
    products that training needs. Absent where the limit is not known, as on a CPU."""
    data_wait: float | None = None
    """Share of the last finished step that waited for its data."""
    memory_bytes: Whole | None = None
    """The most that rank 0 has held so far: of tensors on a GPU, else of the whole process."""
    eta_seconds: Whole | None = None
    """Time that training still takes."""
    resumed_from: Whole | None = None
    """The checkpoint's step that this attempt went on from; absent from the start."""
    saved_step: Whole | None = None
    """The newest checkpoint of this run that is published and verified."""
    skipped_checkpoints: list[str] = []
    """Newer checkpoints that did not verify when this attempt resumed, each with what was wrong."""
    resolved: Resolved | None = None
    """Told by the attempt. In a status it stands beside the progress."""
    data: DataReceipt | None = None
    """What became of the data, once it is prepared; a status has it at `data` instead."""
    end_before: EndBefore | None = None
    """Told by the attempt, for an operator that was not there to hear it. In a status it stands in the history."""
    pod_uid: str | None = None
    """Of the pod that reports; absent outside a cluster."""
    reported_at: AwareDatetime
