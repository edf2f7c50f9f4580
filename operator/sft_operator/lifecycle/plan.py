"""A job and an attempt's number in, the frozen launch plan out. Called by `reconcile`."""

from collections.abc import Callable

from sftjob.job import SFTJob
from sftjob.names import HUB, S3
from sftjob.plan import JobReference, LaunchPlan, Mount
from sftjob.spec import SFTJobSpec, TrainingSpec
from sftjob.status import AttemptKind


def launch_plan(job: SFTJob, attempt: int, *, path_of: Callable[[str], str]) -> LaunchPlan:
    """Of the attempt that the status announces.

    `path_of` tells where a URI of the spec lies on a node. What the trainer would derive from its ranks is fixed.
    """
    spec, metadata = job.spec, job.metadata
    return LaunchPlan(
        job=JobReference(namespace=metadata.namespace, name=metadata.name, uid=metadata.uid),
        attempt=attempt,
        spec=spec if spec.script else spec.model_copy(update={"training": _training(spec)}),
        mounts=[
            Mount(uri=uri, path=path_of(uri))
            for uri in spec.uris
            if not uri.startswith((HUB, S3)) or uri in spec.written_uris
        ],
        shortages=job.status.attempts.shortages,
        prepare_only=job.status.attempts.kind is AttemptKind.PREFLIGHT,
    )


def _training(spec: SFTJobSpec) -> TrainingSpec:
    training = spec.training or TrainingSpec()
    return training.model_copy(update={"global_batch_size": training.global_batch_size or spec.compute.world_size})
