"""What makes a folder a checkpoint or an export: a list of its files with sizes and hashes, written last."""

from datetime import datetime

from sftjob.base import Record, digest


class FileEntry(Record):
    path: str
    """Relative to the folder, with forward slashes."""
    bytes: int
    sha256: str


class EvaluationRecord(Record):
    """What the evaluations up to an optimiser step have found."""

    step: int
    """Of the last evaluation."""
    loss: float
    """Mean cross-entropy a trained token of the data that is never trained on, at that step."""
    best_step: int
    best_loss: float
    without_improvement: int
    """Evaluations since the best one."""


class CheckpointManifest(Record):
    """`manifest.json` of `step-<K>/`: the state after optimiser step K."""

    step: int
    total_steps: int
    """Of the whole run: this very step where evaluation ended it early."""
    attempt: int
    world_size: int
    config_digest: str
    """Of everything that changes the numbers; a run of another configuration must not resume from here."""
    data_digest: str
    saved_at: datetime
    loss: float | None = None
    """Of the step, a trained token; None where it was not finite."""
    evaluation: EvaluationRecord | None = None
    skipped_steps: int = 0
    """Of these steps, those that changed nothing for their gradient's norm."""
    non_finite_steps: int = 0
    """How many of the last steps, in a row, had a gradient that was not finite."""
    halvings: int = 0
    """How often the micro-batches were halved for lack of memory, beside once for each attempt that it has ended."""
    saved_by_stop: bool | None = None
    """Of a step that an undisturbed run does not save, and so never exports; None of all others."""
    saved_by_clock: bool | None = None
    """Of a step that nobody asked to save: never exported either, and deleted when a newer checkpoint is there, or when
    its room is needed; None of all others."""
    exported_step: int | None = None
    """Of a run's last checkpoint: the step whose weights are exported, where it is an earlier one."""
    files: list[FileEntry]

    def digest(self) -> str:
        return digest(self.to_json_dict())


class ExportOwner(Record):
    """`sftjob-owner.json` beside what is not all there yet."""

    owner_uid: str


class ExportManifest(Record):
    """`sftjob-manifest.json` of an output folder: whose it is and what it holds."""

    owner_uid: str
    attempt: int
    step: int | None = None
    checkpoint_digest: str | None = None
    """Of the checkpoint that it was made from; absent, as the step, where a script wrote it without our Trainer."""
    files: list[FileEntry]

    def digest(self) -> str:
        return digest(self.to_json_dict())
