"""The folder of one run: a new one for a new job, or the one that an earlier `sft run` of the same file left.

job.json              the SFTJob object, with its status
claims.json           the folders that its claims stand for
s3/<bucket>/<path>/   its own copy of what it writes into buckets
run.lock, job.lock    held by `sft run`, and while job.json is replaced
attempts/<N>/node-<k>/launcher.log, outcome.json, progress.json, pid, lock, terminated
loss.png              the loss curve, once the job has ended
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_cli.metrics import Metrics, read_metrics
from sft_cli.places import refuse_unusable
from sft_cli.refusal import Refusal
from sft_operator.lifecycle.backend import JobKey
from sft_operator.local.claims import Claims, claims_of
from sft_operator.local.files import replace_file
from sft_operator.local.store import FileStore
from sftjob import names
from sftjob.job import Manifest, ObjectMeta, SFTJob
from sftjob.plan import RunRecord
from sftjob.spec import SFTJobSpec, TrainingSpec
from sftjob.status import Phase


class WorkFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = FileStore(path)
        self.run_lock = path / "run.lock"
        self.loss_curve = path / "loss.png"
        self._claims = path / "claims.json"

    def job(self) -> SFTJob:
        job = self.store.load()
        if job is None:
            raise Refusal(f"{self.path}: no job has run in this folder; name one that `sft run` has made")
        return job

    @property
    def key(self) -> JobKey:
        metadata = self.job().metadata
        return JobKey(metadata.namespace, metadata.name)

    def claims(self) -> Claims:
        recorded = json.loads(self._claims.read_text())
        return Claims(Path("claims"), {claim: Path(folder) for claim, folder in recorded.items()}, scratch=self.path)

    def storage(self) -> Path:
        return Path(self.claims().path_of(self.job().spec.storage_uri))

    def metrics(self) -> Metrics:
        """Of this run: its storage may have turned out to be another one's."""
        record = self.storage() / names.RUN_RECORD
        owner = RunRecord.from_json(record.read_text()).owner.uid if record.exists() else None
        return Metrics([], []) if owner not in (None, self.job().metadata.uid) else read_metrics(self.storage())

    def open(self, manifest: Manifest, *, claim_folders: Mapping[str, Path]) -> SFTJob:
        """The job to go on with, or a new one; one that has failed is asked to try again.

        Raises Refusal where it isn't the same job any more, or where what a new one reads is not here.
        """
        _refuse_what_needs_a_cluster(manifest.spec)
        wanted = _unsuspended(manifest.spec)
        job = self.store.load()
        is_bound = job is not None and not _came_to_nothing(job)
        claims = self._settled_claims(manifest.spec, claim_folders, is_bound=is_bound)
        if not is_bound:
            refuse_unusable(manifest.spec, claims)
        changed = _changes(job, manifest, is_bound=is_bound) if job else []
        if changed:
            raise Refusal(
                f"{self.path} holds a run of another version of this job; changed: {', '.join(changed)}. "
                "Undo the change to go on with that run, or start a new one with another name and another output, and "
                "another checkpoint.storage where that is given"
            )
        self._keep(claims)
        if job is None:
            metadata = ObjectMeta(
                name=manifest.metadata.name, namespace=manifest.metadata.namespace, uid=str(uuid.uuid4())
            )
            return self.store.create(SFTJob(metadata=metadata, spec=wanted))
        if job.status.phase is Phase.SUCCEEDED:
            return job
        if job.spec != wanted:
            job = self.store.write_spec(job, wanted)
        return self.store.write_retry(job) if job.status.phase is Phase.FAILED else job

    def _settled_claims(self, spec: SFTJobSpec, given: Mapping[str, Path], *, is_bound: bool) -> Claims:
        """Every start of a run finds the same folders, from wherever it is called."""
        known = claims_of(spec)
        unknown = [claim for claim in given if claim not in known]
        if unknown:
            spoken_of = f"use one of {', '.join(known)}" if known else "the job speaks of none"
            raise Refusal(f"--claim {unknown[0]}: no URI of the job begins with pvc://{unknown[0]}/; {spoken_of}")
        recorded = json.loads(self._claims.read_text()) if self._claims.exists() else {}
        for claim, folder in given.items():
            if is_bound and claim in recorded and Path(recorded[claim]) != folder.absolute():
                raise Refusal(
                    f"--claim {claim}={folder}: this run began with {recorded[claim]}; "
                    "name that folder again, or start a new run with another --work-dir"
                )
        folders = {claim: (Path("claims") / claim).absolute() for claim in known}
        folders |= {claim: Path(folder) for claim, folder in recorded.items()}
        folders |= {claim: folder.absolute() for claim, folder in given.items()}
        return Claims(Path("claims"), folders, scratch=self.path)

    def _keep(self, claims: Claims) -> None:
        recorded = {claim: str(folder) for claim, folder in claims.folders.items()}
        if not self._claims.exists() or json.loads(self._claims.read_text()) != recorded:
            replace_file(self._claims, json.dumps(recorded, indent=2))


def _refuse_what_needs_a_cluster(spec: SFTJobSpec) -> None:
    for path, uri in spec.places.items():
        if uri.startswith("configMap://"):
            how = "its path" if ".args[" in path else "file:///<absolute path>"
            raise Refusal(
                f"{path}: {uri} exists only in a cluster; write its content into a file, and name that as {how}"
            )
    for index, variable in enumerate(spec.compute.env):
        if variable.value is None and variable.name not in os.environ:
            raise Refusal(
                f"spec.compute.env[{index}]: {variable.name} comes from a Secret, which only a cluster has; "
                f"set it in your shell: {variable.name}=... sft run"
            )


def _came_to_nothing(job: SFTJob) -> bool:
    """It has failed and left no checkpoint to go on from: whatever was wrong with it may be corrected."""
    return job.status.phase is Phase.FAILED and not job.status.attempts.saved_step


def _unsuspended(spec: SFTJobSpec) -> SFTJobSpec:
    """Running it is what its user just asked for."""
    return spec.model_copy(update={"run_policy": spec.run_policy.model_copy(update={"suspend": False})})


def _changes(job: SFTJob, manifest: Manifest, *, is_bound: bool) -> list[str]:
    """Paths of what may not change and has: of a job that came to nothing its name alone."""
    renamed = [
        f"metadata.{field}"
        for field in ("name", "namespace")
        if getattr(job.metadata, field) != getattr(manifest.metadata, field)
    ]
    before, after = _what_counts(job.spec), _what_counts(manifest.spec)
    return renamed + (_changed_fields(before, after, "spec") if is_bound else [])


def _what_counts(spec: SFTJobSpec) -> dict[str, Any]:
    """Of a job that may go on; training that is absent is training by its defaults."""
    found = spec.to_json_dict() | {"runPolicy": {}}
    if not spec.script:
        found.setdefault("training", TrainingSpec().to_json_dict())
    return found


def _changed_fields(before: Any, after: Any, path: str) -> list[str]:
    """Paths of the fields that differ, as a file spells them."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        return [line for key in keys for line in _changed_fields(before.get(key), after.get(key), f"{path}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for index, (b, a) in pairs for line in _changed_fields(b, a, f"{path}[{index}]")]
    return [] if before == after else [path]
