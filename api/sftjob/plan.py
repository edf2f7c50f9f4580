"""The launch plan: all that an attempt's launchers need to know, frozen when the attempt is created.

Built by `sft_operator.lifecycle.plan`, passed to every launcher as one JSON argument.
"""

from sftjob.base import Record
from sftjob.progress import Resolved
from sftjob.spec import SFTJobSpec


class JobReference(Record):
    namespace: str
    name: str
    uid: str


class Mount(Record):
    uri: str
    path: str


class LaunchPlan(Record):
    job: JobReference
    attempt: int
    spec: SFTJobSpec
    mounts: list[Mount]
    """Where each URI of the spec lies on a node; what comes from a hub or a bucket lies in storage once it
    is downloaded, and what goes into a bucket is written there first."""
    shortages: int = 0
    """Attempts before this one that ended because memory ran out: each halves what goes through the model at a time."""
    prepare_only: bool = False
    """The pre-flight: one launcher, without accelerators, which stops once all is ready for the ranks."""

    @property
    def nodes(self) -> int:
        """Launchers of this attempt."""
        return 1 if self.prepare_only else self.spec.compute.nodes

    def path(self, uri: str) -> str:
        return next(mount.path for mount in self.mounts if mount.uri == uri)

    @property
    def storage(self) -> str:
        return self.path(self.spec.storage_uri)


class PinnedObject(Record):
    """An object in a bucket, as the first attempt found it."""

    path: str
    """Below the URI; empty where that is an object itself."""
    bytes: int
    etag: str


class RunRecord(Record):
    """`run.json` in a job's storage: it outlives the object and says whose the storage is."""

    owner: JobReference
    spec: SFTJobSpec
    resolved: Resolved | None = None
    """None where nothing comes from a hub or a bucket."""
    objects: dict[str, list[PinnedObject]] = {}
    """What is read from buckets, by URI."""
