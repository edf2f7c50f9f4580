"""`<work folder>/job.json`: the whole SFTJob object, with the same content as in a cluster."""

from pathlib import Path

from sft_operator.lifecycle.backend import Conflict, JobKey
from sft_operator.local.files import replace_file
from sft_operator.local.lock import locked
from sftjob import names
from sftjob.job import SFTJob
from sftjob.spec import SFTJobSpec


class FileStore:
    def __init__(self, work_folder: Path) -> None:
        self.path = work_folder / "job.json"

    async def read(self, key: JobKey) -> SFTJob | None:
        job = self.load()
        return job if job is not None and (job.metadata.namespace, job.metadata.name) == key else None

    async def write_status(self, job: SFTJob) -> SFTJob:
        return self._replace(job)

    async def confirm(self, job: SFTJob) -> None:
        self._refuse_old(job, self.load())

    async def delete(self, job: SFTJob) -> None:
        """Never: what a run left is its user's, who has no other record of it."""

    def load(self) -> SFTJob | None:
        """None where the folder has no job yet."""
        try:
            return SFTJob.from_json(self.path.read_bytes())
        except FileNotFoundError:
            return None

    def create(self, job: SFTJob) -> SFTJob:
        """Raises Conflict where the folder has a job already."""
        return self._replace(job)

    def write_spec(self, job: SFTJob, spec: SFTJobSpec) -> SFTJob:
        """A new generation, as the API server counts them. Raises Conflict where `job` isn't the newest."""
        metadata = job.metadata.model_copy(update={"generation": job.metadata.generation + 1})
        return self._replace(job.model_copy(update={"spec": spec, "metadata": metadata}))

    def write_retry(self, job: SFTJob) -> SFTJob:
        """Lets a job that has failed go on. Raises Conflict where `job` isn't the newest."""
        # Each retry has another attempt for its last one.
        annotations = job.metadata.annotations | {names.RETRY_ANNOTATION: str(job.status.attempts.current)}
        metadata = job.metadata.model_copy(update={"annotations": annotations})
        return self._replace(job.model_copy(update={"metadata": metadata}))

    def _replace(self, job: SFTJob) -> SFTJob:
        """Only over the version that the caller read."""
        with locked(self.path.with_suffix(".lock"), wait=True):
            version = self._refuse_old(job, self.load())
            metadata = job.metadata.model_copy(update={"resource_version": str(int(version or 0) + 1)})
            job = job.model_copy(update={"metadata": metadata})
            replace_file(self.path, job.to_json(indent=2))
        return job

    def _refuse_old(self, job: SFTJob, stored: SFTJob | None) -> str:
        """The version of both."""
        version = stored.metadata.resource_version if stored else ""
        if job.metadata.resource_version != version:
            raise Conflict(f"{self.path}: version {job.metadata.resource_version!r} is not the newest, {version!r}")
        return version
