"""How an attempt ended on one node: the launcher's last words, as termination message and in storage."""

from pydantic import AwareDatetime

from sftjob.base import Record, Whole
from sftjob.failure import Reason
from sftjob.progress import Progress
from sftjob.receipt import DataReceipt
from sftjob.standstill import Standstill

MAXIMAL_BYTES = 4096
"""What the kubelet keeps of a termination message."""


class Artifact(Record):
    """A folder that the job has written."""

    uri: str
    format: str
    digest: str
    """Of its manifest, which has size and hash of every file."""
    bytes: Whole
    """Of all its files."""
    step: Whole | None = None
    """The optimiser step after which it was; absent where a script wrote it without our Trainer."""


class Outcome(Record):
    attempt: Whole
    node_rank: Whole
    reason: Reason
    exit_code: Whole | None = None
    """The launcher's own; None where its container never began, or nobody knows how it ended."""
    message: str = ""
    rank: Whole | None = None
    """The rank that caused the end."""
    signal: Whole | None = None
    """The signal that ended that rank; or, where no rank is the cause, torchrun or the process of a stage."""
    rank_exit_code: Whole | None = None
    standstill: Standstill | None = None
    """Of ranks that did not go on, or did not react when they were told to stop."""
    resumed_from: Whole | None = None
    last_step: Whole | None = None
    saved_step: Whole | None = None
    saved: bool | None = None
    """Of a preempted attempt: whether everything trained is in a checkpoint."""
    skipped_checkpoints: list[str] = []
    """Checkpoints that did not verify, with the reason."""
    final_digest: str | None = None
    """Of the final checkpoint's manifest; a success without it is not believed."""
    script_completed: bool = False
    """The job's own script exited 0 on every rank of this node, and has no final checkpoint since it has no Trainer of
    ours: that is all the proof there is."""
    artifacts: list[Artifact] = []
    data: DataReceipt | None = None
    progress: Progress | None = None
    log_tail: str = ""
    started_at: AwareDatetime
    ended_at: AwareDatetime

    def to_message(self) -> str:
        """JSON of at most 4,096 bytes: the receipt's lists, then the log's tail, then the message, give way."""
        outcome = self
        for keep in (600, 600, 300, 100, 0):
            shortened = outcome.model_copy(
                update={
                    "log_tail": self.log_tail[len(self.log_tail) - min(keep, len(self.log_tail)) :],
                    "message": self.message[: 1000 + keep],
                }
            )
            text = shortened.to_json()
            if len(text.encode()) <= MAXIMAL_BYTES:
                return text
            if self.data is not None:
                outcome = self.model_copy(update={"data": self.data.shortened()})
        return self.model_copy(
            update={
                "log_tail": "",
                "message": self.message[:300],
                "artifacts": [],
                "data": None,
                "skipped_checkpoints": [],
                "progress": None,
                "standstill": None,
            }
        ).to_json()
