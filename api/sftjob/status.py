"""`status` of an SFTJob: what the operator writes. Output only, never a trigger for users."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from sftjob.base import Record
from sftjob.failure import Reason
from sftjob.outcome import Artifact, DataReceipt
from sftjob.progress import Progress

HISTORY_LIMIT = 10


class Phase(StrEnum):
    PENDING = "Pending"
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


ConditionType = Literal[
    "Accepted", "Running", "CheckpointAvailable", "Suspended", "Complete", "Failed", "Reconciling", "Stalled"
]


class Condition(Record):
    """metav1.Condition."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    observed_generation: int = 0
    last_transition_time: datetime


class AttemptRecord(Record):
    """An attempt that has ended, and why."""

    number: int
    reason: Reason
    exit_code: int | None = None
    rank: int | None = None
    signal: int | None = None
    node_rank: int | None = None
    pod: str | None = None
    """The pod that caused the end, and the cluster's node that it was on."""
    node: str | None = None
    message: str = ""
    resumed_from: int | None = None
    last_step: int | None = None
    saved_step: int | None = None
    skipped_checkpoints: list[str] = []
    log_tail: str = ""
    started_at: datetime | None = None
    ended_at: datetime


class AttemptsStatus(Record):
    current: int = 0
    """Number of the newest attempt; 0 before the first."""
    failures: int = 0
    disruptions: int = 0
    without_progress: int = 0
    """Attempts in a row that ended without a newer checkpoint than before."""
    saved_step: int | None = None
    """The newest checkpoint that an attempt which has ended left behind."""
    started_at: datetime | None = None
    """When the current attempt was announced."""
    next_at: datetime | None = None
    """When the next attempt starts, while one waits."""
    history: list[AttemptRecord] = []
    """Newest first, bounded."""

    @property
    def current_has_ended(self) -> bool:
        return self.current == 0 or (bool(self.history) and self.history[0].number == self.current)


class Columns(Record):
    """The status as `kubectl get` shows it."""

    progress: str = ""
    """While it runs the stage, then the last finished step of all: `Training 420/1000`."""
    loss: str = ""
    tokens_per_second: str = ""
    eta: str = ""
    saved: str = ""
    """Step of the newest checkpoint."""


class SFTJobStatus(Record):
    phase: Phase = Phase.PENDING
    observed_generation: int = 0
    conditions: list[Condition] = []
    progress: Progress | None = None
    attempts: AttemptsStatus = AttemptsStatus()
    data: DataReceipt | None = None
    artifacts: list[Artifact] = []
    columns: Columns = Columns()
