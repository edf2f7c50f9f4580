"""What a rank, or the prepare stage, leaves for the launcher: how it ended and what it had reached.

One small file each in the launcher's scratch folder; a process that was killed leaves none.
"""

from pathlib import Path

from sft_trainer.storage.folders import write_atomically
from sftjob.base import Record
from sftjob.failure import Reason
from sftjob.receipt import DataReceipt


class Report(Record):
    reason: Reason
    message: str = ""
    resumed_from: int | None = None
    last_step: int | None = None
    saved_step: int | None = None
    saved: bool | None = None
    final_digest: str | None = None
    peer_lost: bool = False
    """A collective failed: another rank's end is the cause."""
    data: DataReceipt | None = None


def report_path(scratch: Path, who: str) -> Path:
    """`who` is `prepare` or `rank-<r>`."""
    return scratch / "reports" / f"{who}.json"


def write_report(scratch: Path, who: str, report: Report) -> None:
    path = report_path(scratch, who)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, report.to_json())


def read_reports(scratch: Path) -> dict[str, Report]:
    return {path.stem: Report.from_json(path.read_text()) for path in sorted((scratch / "reports").glob("*.json"))}
