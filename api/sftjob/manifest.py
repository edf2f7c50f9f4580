"""What makes a folder a checkpoint or an export: a list of its files with sizes and hashes, written last."""

from datetime import datetime

from sftjob.base import Record, digest


class FileEntry(Record):
    path: str
    """Relative to the folder, with forward slashes."""
    bytes: int
    sha256: str


class CheckpointManifest(Record):
    """`manifest.json` of `step-<K>/`: the state after optimiser step K."""

    step: int
    total_steps: int
    attempt: int
    world_size: int
    config_digest: str
    """Of everything that changes the numbers; a run of another configuration must not resume from here."""
    data_digest: str
    saved_at: datetime
    files: list[FileEntry]

    def digest(self) -> str:
        return digest(self.to_json_dict())


class ExportManifest(Record):
    """`sftjob-manifest.json` of an output folder: whose it is and what it holds."""

    owner_uid: str
    attempt: int
    step: int
    checkpoint_digest: str
    files: list[FileEntry]

    def digest(self) -> str:
        return digest(self.to_json_dict())
