"""At most one attempt trains and publishes, whoever else is still alive: the right to do so is a file in storage.

A launcher enters once, at its start; whoever publishes or deletes calls `check` again just before.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sft_trainer.storage.folders import sync_path, write_atomically
from sftjob import names
from sftjob.base import Record
from sftjob.failure import JobFailure, Reason, storage_reason
from sftjob.manifest import ExportManifest
from sftjob.outcome import Outcome
from sftjob.plan import LaunchPlan, RunRecord
from sftjob.progress import Resolved

_SHARED_WITHIN_SECONDS = 60


class NodeClaim(Record):
    """`attempts/<N>/node-<k>.json` while the attempt runs; its outcome is added at the end."""

    job_uid: str
    attempt: int
    node_rank: int
    pod_uid: str | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Fence:
    storage: Path
    job_uid: str
    attempt: int

    def check(self) -> None:
        """Raises JobFailure(SUPERSEDED) where a later attempt has entered this storage."""
        for folder in _entries(self.storage / names.ATTEMPTS):
            if folder.isdecimal() and int(folder) > self.attempt:
                raise JobFailure(
                    Reason.SUPERSEDED, f"attempt {self.attempt} gives way: attempt {folder} uses {self.storage}"
                )


def enter(plan: LaunchPlan, *, node_rank: int, pod_uid: str | None) -> Fence:
    """Claims this attempt for this launcher.

    Raises JobFailure: SUPERSEDED where the attempt, or a later one, was claimed before; STORAGE_REFUSED where
    storage or an output belongs to another job; STORAGE_UNAVAILABLE or STORAGE_FULL where it can't be written.
    """
    storage = Path(plan.storage)
    fence = Fence(storage, plan.job.uid, plan.attempt)
    try:
        _refuse_foreign_storage(plan)
        fence.check()
        claim = names.node_claim(storage, plan.attempt, node_rank)
        claim.parent.mkdir(parents=True, exist_ok=True)
        content = NodeClaim(job_uid=plan.job.uid, attempt=plan.attempt, node_rank=node_rank, pod_uid=pod_uid)
        _create(claim, content.to_json())
        fence.check()
        if node_rank == 0:
            _own(plan)
    except OSError as error:
        raise JobFailure(
            storage_reason(error),
            f"spec.checkpoint.storage: {storage} can't be written ({error.strerror}); "
            "give the pod's user write access to it, or name another folder",
        ) from None
    return fence


def leave(plan: LaunchPlan, outcome: Outcome, *, pod_uid: str | None) -> None:
    """Writes the outcome into this node's claim."""
    claim = NodeClaim(
        job_uid=plan.job.uid,
        attempt=plan.attempt,
        node_rank=outcome.node_rank,
        pod_uid=pod_uid,
        outcome=outcome,
    )
    write_atomically(names.node_claim(Path(plan.storage), plan.attempt, outcome.node_rank), claim.to_json())


def has_left(plan: LaunchPlan, *, node_rank: int) -> bool:
    """The launcher of this node has ended, and told how."""
    return _outcome(plan, attempt=plan.attempt, node_rank=node_rank) is not None


def hangs_before(plan: LaunchPlan, *, node_rank: int) -> int:
    """Of the three attempts before, how many have ended as a hang by the word of this node's launcher."""
    before = range(max(1, plan.attempt - 3), plan.attempt)
    outcomes = [_outcome(plan, attempt=attempt, node_rank=node_rank) for attempt in before]
    return sum(outcome is not None and outcome.reason is Reason.HANG for outcome in outcomes)


def _outcome(plan: LaunchPlan, *, attempt: int, node_rank: int) -> Outcome | None:
    try:
        claim = names.node_claim(Path(plan.storage), attempt, node_rank).read_text()
        return NodeClaim.from_json(claim).outcome
    except (FileNotFoundError, ValidationError):
        return None


def _create(claim: Path, content: str) -> None:
    try:
        descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        raise JobFailure(
            Reason.SUPERSEDED, f"another launcher has claimed this attempt before: {claim} exists"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_path(claim.parent)


def _refuse_foreign_storage(plan: LaunchPlan) -> None:
    record = _read_run_record(Path(plan.storage))
    if record and record.owner.uid != plan.job.uid:
        owner = record.owner
        raise JobFailure(
            Reason.STORAGE_REFUSED,
            f"spec.checkpoint.storage: {plan.spec.storage_uri} belongs to the job {owner.namespace}/{owner.name} "
            f"with uid {owner.uid}; name another folder, or delete {plan.storage} if that run is not needed any more",
        )
    for index, output in enumerate(plan.spec.outputs):
        folder = Path(plan.path(output.uri))
        if not _entries(folder):
            continue
        manifest = read_export_manifest(folder)
        if manifest is None or manifest.owner_uid != plan.job.uid:
            owner_text = f"the job with uid {manifest.owner_uid}" if manifest else "no job (it has no manifest of ours)"
            raise JobFailure(
                Reason.STORAGE_REFUSED,
                f"spec.output[{index}].uri: {output.uri} is not empty and belongs to {owner_text}; "
                f"name another folder, or delete {folder} if it is not needed any more",
            )


def _own(plan: LaunchPlan) -> None:
    """Only node 0 of an attempt that holds the fence gets here, so no two of one job write at once."""
    if _read_run_record(Path(plan.storage)) is None:
        write_atomically(
            Path(plan.storage) / names.RUN_RECORD, RunRecord(owner=plan.job, spec=plan.spec).to_json(indent=2)
        )
    _refuse_foreign_storage(plan)


def resolved_before(plan: LaunchPlan) -> Resolved | None:
    """The commits that the first attempt took from hubs; None before it has looked them up."""
    record = _read_run_record(Path(plan.storage))
    return record.resolved if record else None


def record_resolved(plan: LaunchPlan, resolved: Resolved) -> None:
    """For all later attempts. Called on node 0, before anything of these commits is used."""
    storage = Path(plan.storage)
    Fence(storage, plan.job.uid, plan.attempt).check()
    record = _read_run_record(storage)
    assert record is not None
    write_atomically(storage / names.RUN_RECORD, record.model_copy(update={"resolved": resolved}).to_json(indent=2))


def wait_for_node_zero(plan: LaunchPlan) -> None:
    """Storage is shared if the claim of node 0, which runs by now, shows up here.

    Raises JobFailure(STORAGE_NOT_SHARED) where it doesn't.
    """
    claim = names.node_claim(Path(plan.storage), plan.attempt, 0)
    deadline = time.monotonic() + _SHARED_WITHIN_SECONDS
    while not claim.exists():
        if time.monotonic() > deadline:
            raise JobFailure(
                Reason.STORAGE_NOT_SHARED,
                f"spec.checkpoint.storage: {plan.spec.storage_uri} is not shared: node 0's file {claim} did not appear "
                f"here within {_SHARED_WITHIN_SECONDS} s; use a volume that all nodes mount (ReadWriteMany)",
            )
        time.sleep(0.2)


def read_export_manifest(folder: Path) -> ExportManifest | None:
    """None where the folder has none that can be read."""
    try:
        return ExportManifest.from_json((folder / names.EXPORT_MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def _read_run_record(storage: Path) -> RunRecord | None:
    path = storage / names.RUN_RECORD
    try:
        return RunRecord.from_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise JobFailure(
            Reason.STORAGE_REFUSED,
            f"spec.checkpoint.storage: {path} can't be read, so its owner is unknown; name another folder",
        ) from None


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names only, and one call
    except FileNotFoundError:
        return []
