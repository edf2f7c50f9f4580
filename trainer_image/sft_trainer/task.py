"""What the launcher hands its children: the plan and where to leave reports, in one file of the scratch folder."""

from pathlib import Path
from typing import Self

from sftjob.base import Record
from sftjob.plan import LaunchPlan

_NAME = "task.json"


class RankTask(Record):
    plan: LaunchPlan

    def write(self, scratch: Path) -> None:
        (scratch / _NAME).write_text(self.to_json())

    @classmethod
    def read(cls, scratch: Path) -> Self:
        return cls.from_json((scratch / _NAME).read_text())
