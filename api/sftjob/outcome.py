"""How an attempt ended on one node: the launcher's last words, as termination message and in storage."""

from datetime import datetime

from sftjob.base import Record
from sftjob.failure import Reason
from sftjob.progress import Progress

MAXIMAL_BYTES = 4096
"""What the kubelet keeps of a termination message."""


class DataReceipt(Record):
    """What became of the data: every sample is counted once."""

    samples: int
    """Trained on in each pass, as often as `sampleRatio` draws them."""
    tokens: int
    """Of these samples."""
    trained_tokens: int
    """Those of them that count in the loss."""
    truncated: int = 0
    """Samples of these that were cut to a pack's length."""
    dropped: int = 0
    """Chats of the files that are left out for their length."""
    packs: int
    """Rows that the samples fill."""


class Artifact(Record):
    """A folder that the job has written."""

    uri: str
    format: str
    digest: str
    """Of its manifest, which has size and hash of every file."""
    bytes: int
    """Of all its files."""


class Outcome(Record):
    attempt: int
    node_rank: int
    reason: Reason
    exit_code: int
    """The launcher's own."""
    message: str = ""
    rank: int | None = None
    """The rank that caused the end."""
    signal: int | None = None
    """The signal that ended that rank."""
    rank_exit_code: int | None = None
    resumed_from: int | None = None
    last_step: int | None = None
    saved_step: int | None = None
    saved: bool | None = None
    """Of a preempted attempt: whether everything trained is in a checkpoint."""
    skipped_checkpoints: list[str] = []
    """Checkpoints that did not verify, with the reason."""
    final_digest: str | None = None
    """Of the final checkpoint's manifest; a success without it is not believed."""
    artifacts: list[Artifact] = []
    data: DataReceipt | None = None
    progress: Progress | None = None
    log_tail: str = ""
    started_at: datetime
    ended_at: datetime

    def to_message(self) -> str:
        """JSON of at most 4,096 bytes: the log's tail, then the message, give way."""
        outcome = self
        for keep in (600, 300, 100, 0):
            shortened = outcome.model_copy(
                update={
                    "log_tail": self.log_tail[len(self.log_tail) - min(keep, len(self.log_tail)) :],
                    "message": self.message[: 1000 + keep],
                }
            )
            text = shortened.to_json()
            if len(text.encode()) <= MAXIMAL_BYTES:
                return text
        return self.model_copy(
            update={
                "log_tail": "",
                "message": self.message[:300],
                "artifacts": [],
                "data": None,
                "skipped_checkpoints": [],
                "progress": None,
            }
        ).to_json()
