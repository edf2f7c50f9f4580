"""The two interfaces of the operator: where attempts run, and where the object is kept.

Each has two implementations: local processes and a file, PyTorchJobs and the API server's object.
"""

from typing import NamedTuple, Protocol

from sft_operator.lifecycle.observation import Observation
from sftjob.job import SFTJob
from sftjob.plan import LaunchPlan


class JobKey(NamedTuple):
    namespace: str
    name: str


class Conflict(Exception):
    """The stored object is newer than the one that was read: read again and decide again."""


class NotNow(Exception):
    """What was asked for can't be done yet: ask again later. The reason is for the log."""


class Backend(Protocol):
    async def observe(self, job: SFTJob) -> Observation:
        """What exists now of the job's attempts. Changes nothing."""

    async def create(self, job: SFTJob, plan: LaunchPlan) -> None:
        """Starts what the plan's attempt lacks; nothing where it is whole already. Returns before it has ended.

        Raises NotNow where something stands in its way.
        """

    async def delete(self, job: SFTJob, attempt: int) -> None:
        """Asks the attempt to save and end within its grace period. Returns at once; asked again until it has ended, or
        goes by itself."""


class Store(Protocol):
    async def read(self, key: JobKey) -> SFTJob | None:
        """None where the object is gone."""

    async def write_status(self, job: SFTJob) -> SFTJob:
        """The job with its new resource version. Raises Conflict where `job` isn't the newest."""

    async def confirm(self, job: SFTJob) -> None:
        """Asks where the object itself is kept. Raises Conflict where `job` isn't the newest, or is to go."""

    async def delete(self, job: SFTJob) -> None:
        """The object and no other of its name. Raises Conflict where `job` isn't the newest."""
