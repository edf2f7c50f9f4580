"""`status` of an SFTJob: what the operator writes. Output only, never a trigger for users."""

from datetime import datetime
from typing import Literal, get_args

from pydantic import Field

from sftjob.base import OpenWord, Record
from sftjob.failure import Reason
from sftjob.outcome import Artifact
from sftjob.progress import Progress, Resolved
from sftjob.receipt import DataReceipt
from sftjob.standstill import Standstill

HISTORY_LIMIT = 10


class Phase(OpenWord):
    """No later version may add a final one: an older operator would start the job again."""

    PENDING = "Pending"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    RESTARTING = "Restarting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def is_final(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED)


class AttemptKind(OpenWord):
    TRAINING = "Training"
    PREFLIGHT = "Preflight"


ConditionType = Literal[
    "Accepted", "Running", "CheckpointAvailable", "Suspended", "Complete", "Failed", "Reconciling", "Stalled"
]


class Condition(Record):
    """metav1.Condition."""

    type: str = Field(description=f"One of {', '.join(get_args(ConditionType))}.")
    status: Literal["True", "False", "Unknown"]
    reason: str
    """One word, for programs."""
    message: str = ""
    """For people."""
    observed_generation: int = 0
    """Generation of the spec that it speaks of."""
    last_transition_time: datetime
    """When `status` changed last."""


class Recovery(Record):
    """How long it took to train again after the attempt before had failed, part by part, by the operator's clock.

    Reports are read every few seconds: the last two are as late. What wasn't reached, or not seen, is absent.
    """

    detect_seconds: int | None = None
    """From the end of the launcher that caused it until the operator knew."""
    clean_up_seconds: int | None = None
    """Until the last launcher of that attempt had ended."""
    start_seconds: int | None = None
    """Until a launcher of this attempt ran; the wait before it counts."""
    load_seconds: int | None = None
    """Until training began: data, processes, model and checkpoint."""
    first_step_seconds: int | None = None
    """Until its first step was finished."""
    since: datetime | None = None
    """When the first part that is not known yet began."""


class AttemptRecord(Record):
    """An attempt that has ended, and why."""

    number: int
    """From 1."""
    kind: AttemptKind = AttemptKind.TRAINING
    """Preflight: it was to prepare, on one worker without accelerators, and not to train."""
    reason: Reason
    exit_code: int | None = None
    """Of the launcher that caused the end."""
    rank: int | None = None
    """The rank that caused the end."""
    signal: int | None = None
    """The signal that ended that rank; or, where no rank is the cause, torchrun or the process of a stage."""
    node_rank: int | None = None
    """The launcher that caused the end."""
    pod: str | None = None
    """That launcher's pod."""
    node: str | None = None
    """The cluster's node that the pod was on."""
    message: str = ""
    """What happened, for people."""
    resumed_from: int | None = None
    """The checkpoint's step that it went on from; absent from the start."""
    last_step: int | None = None
    """The last finished optimiser step."""
    saved_step: int | None = None
    """The newest checkpoint that it left behind."""
    lost_steps: int | None = None
    """Optimiser steps that it finished and that are in no checkpoint: the next attempt takes them again."""
    skipped_checkpoints: list[str] = []
    """Newer checkpoints that did not verify when it resumed, each with what was wrong."""
    log_tail: str = ""
    """The last lines of the rank that caused the end."""
    standstill: Standstill | None = None
    """Where its ranks stood, if they did not go on, or did not react when they were told to stop."""
    recovery: Recovery | None = None
    started_at: datetime | None = None
    ended_at: datetime
    """When the launcher that caused the end ended, or when the operator decided on it."""


class AttemptsStatus(Record):
    """How often the job was started, and how each start ended."""

    current: int = 0
    """Number of the newest attempt; 0 before the first."""
    kind: AttemptKind = AttemptKind.TRAINING
    """Of the newest attempt. Preflight: it prepares on one worker, before accelerators are asked for."""
    image: str | None = None
    """Of the newest attempt, where `spec.compute.image` names none. Once a checkpoint is saved the attempts that follow
    keep it, whatever the operator's default is by then; a retry by hand forgets it."""
    prepared: int | None = None
    """The pre-flight attempt that found everything ready; a retry by hand forgets it."""
    failures: int = 0
    """Attempts that used up one of `retries`."""
    disruptions: int = 0
    """Attempts that used up one of `disruptionRetries`."""
    without_progress: int = 0
    """Attempts in a row that ended without a newer checkpoint than before."""
    shortages: int = 0
    """Attempts that ended because memory ran out, once the model was loaded. Each halves the tokens that go through the
    model at a time, in all attempts that follow; a retry by hand begins anew with them, but not with what a checkpoint
    of one process keeps."""
    saved_step: int | None = None
    """The newest checkpoint that an attempt which has ended left behind."""
    started_at: datetime | None = None
    """When the current attempt was announced, or let go by its queue."""
    running_since: datetime | None = None
    """When a launcher of the current attempt was first seen to run."""
    running_seconds: int = 0
    """Running time of the attempts that have ended, for `activeDeadlineSeconds`."""
    recovery: Recovery | None = None
    """Of the current attempt so far, or of the one that is awaited."""
    ending: AttemptRecord | None = None
    """Why the current attempt ends, as far as is known, while some of its nodes still save."""
    noticed_at: datetime | None = None
    """When that was known first."""
    avoided_nodes: list[str] = []
    """Nodes on which a GPU failed, newest first, bounded; a suspension and a retry by hand forget them."""
    next_at: datetime | None = None
    """When the next attempt starts, while one waits."""
    history: list[AttemptRecord] = []
    """Newest first, bounded."""

    @property
    def current_has_ended(self) -> bool:
        return self.current == 0 or (bool(self.history) and self.history[0].number == self.current)


class Usage(Record):
    """GPU time of the attempts that have ended: the GPUs of `resources.limits`, from the first running pod on."""

    gpu_seconds: int = 0
    """In all."""
    lost_gpu_seconds: int = 0
    """Of these what left nothing behind: an attempt's time by the share of its steps that are in no checkpoint; all of
    one that finished none. An estimate: its steps count as equally long."""


class Columns(Record):
    """The status as `kubectl get` shows it."""

    progress: str = ""
    """While it runs the stage, then the last finished step of all: `Training 420/1000`."""
    loss: str = ""
    """Of the last finished step."""
    tokens_per_second: str = ""
    """Over all ranks."""
    eta: str = ""
    """Time that training still takes."""
    saved: str = ""
    """Step of the newest checkpoint."""


class SFTJobStatus(Record):
    """What has become of the job so far."""

    phase: Phase = Phase.PENDING
    """The state in one word."""
    observed_generation: int = 0
    """Generation of the spec that the operator has seen."""
    conditions: list[Condition] = []
    """The state in yes and no, for programs that wait for one."""
    progress: Progress | None = None
    """The newest report of the running or the last attempt."""
    attempts: AttemptsStatus = AttemptsStatus()
    resolved: Resolved | None = None
    data: DataReceipt | None = None
    artifacts: list[Artifact] = []
    """What the job has written, once it succeeded."""
    usage: Usage | None = None
    """Absent where no GPUs are asked for."""
    retry_handled: str | None = None
    """The value of the annotation `sftjob.dev/retry` that was acted on last; of one over 64 characters, its digest."""
    columns: Columns = Columns()

    @property
    def saved_step(self) -> int | None:
        """Of the newest checkpoint; None before the first. The newest report knows best: an older one may be gone."""
        live = self.progress.saved_step if self.progress else None
        return live if live is not None else self.attempts.saved_step
