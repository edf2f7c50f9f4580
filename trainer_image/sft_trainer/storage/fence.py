"""At most one attempt trains and publishes, whoever else is still alive: the right to do so is a file in storage.

A launcher enters once, at its start; whoever publishes or deletes calls `check` again just before.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from sft_trainer.storage.outputs import output_at
from sft_trainer.storage.records import FIELD, BucketRecords, FolderRecords, Records
from sft_trainer.storage.remote import RemoteCheckpoints
from sftjob import names
from sftjob.base import Record
from sftjob.failure import BROUGHT_ABOUT, JobFailure, Reason
from sftjob.outcome import Outcome
from sftjob.plan import LaunchPlan, PinnedObject, RunRecord
from sftjob.progress import EndBefore, Resolved


class NodeClaim(Record):
    """`attempts/<N>/node-<k>.json` while the attempt runs; its outcome is added at the end."""

    job_uid: str
    attempt: int
    node_rank: int
    pod_uid: str | None = None
    nonce: str = ""
    """Of this launcher alone, so that it knows its own claim where the answer to its creation was lost."""
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Fence:
    storage: Path
    """On this machine."""
    job_uid: str
    attempt: int
    uri: str | None = None
    """Of the storage, where that is in a bucket: what counts lies there, and `storage` is this node's copy."""

    @classmethod
    def of(cls, plan: LaunchPlan) -> Self:
        uri = plan.spec.storage_uri
        return cls(Path(plan.storage), plan.job.uid, plan.attempt, uri if uri.startswith(names.S3) else None)

    @cached_property
    def records(self) -> Records:
        return BucketRecords(self.uri) if self.uri else FolderRecords(self.storage)

    @cached_property
    def remote(self) -> RemoteCheckpoints | None:
        return RemoteCheckpoints(self.uri) if self.uri else None

    def check(self) -> None:
        """Raises JobFailure(SUPERSEDED) where a later attempt has entered this storage."""
        later = self.later_attempt()
        if later is not None:
            raise JobFailure(
                Reason.SUPERSEDED, f"attempt {self.attempt} gives way: attempt {later} uses {self.records.name}"
            )

    def later_attempt(self) -> int | None:
        """That has entered this storage."""
        entered = [int(folder) for folder in self.records.folders(names.ATTEMPTS) if folder.isdecimal()]
        return next((attempt for attempt in entered if attempt > self.attempt), None)


def enter(plan: LaunchPlan, *, node_rank: int, pod_uid: str | None) -> Fence:
    """Claims this attempt for this launcher.

    Raises JobFailure: SUPERSEDED where the attempt, or a later one, was claimed before; STORAGE_REFUSED where
    storage or an output belongs to another job; STORAGE_UNAVAILABLE or STORAGE_FULL where it can't be written.
    """
    fence = Fence.of(plan)
    records = fence.records
    _refuse_foreign_storage(plan, records)
    fence.check()
    claim = NodeClaim(
        job_uid=plan.job.uid,
        attempt=plan.attempt,
        node_rank=node_rank,
        pod_uid=pod_uid,
        nonce=secrets.token_hex(8),
    )
    key = _claim(plan.attempt, node_rank)
    if not records.create(key, claim.to_json()):
        raise JobFailure(
            Reason.SUPERSEDED, f"another launcher has claimed this attempt before: {records.name}/{key} exists"
        )
    fence.check()
    if node_rank == 0:
        _own(plan, records)
    return fence


def leave(plan: LaunchPlan, outcome: Outcome, *, pod_uid: str | None) -> None:
    """Writes the outcome into this node's claim, and what this node told of the attempt beside it."""
    claim = NodeClaim(
        job_uid=plan.job.uid,
        attempt=plan.attempt,
        node_rank=outcome.node_rank,
        pod_uid=pod_uid,
        outcome=outcome,
    )
    fence = Fence.of(plan)
    try:
        if fence.remote:
            fence.remote.tell(fence.storage, attempt=plan.attempt)
            # One that has not begun to train may have an old copy of them, or half of one.
            has_trained = names.metrics(fence.storage, plan.attempt).exists()
            if has_trained and fence.later_attempt() is None:
                fence.remote.tell_trackio(fence.storage)
    finally:
        fence.records.replace(_claim(plan.attempt, outcome.node_rank), claim.to_json())


def has_left(plan: LaunchPlan, *, node_rank: int) -> bool:
    """The launcher of this node has ended, and told how."""
    return _outcome(plan, attempt=plan.attempt, node_rank=node_rank) is not None


def hangs_before(plan: LaunchPlan, *, node_rank: int) -> int:
    """Of the three attempts before, how many have ended as a hang by the word of this node's launcher."""
    before = range(max(1, plan.attempt - 3), plan.attempt)
    outcomes = [_outcome(plan, attempt=attempt, node_rank=node_rank) for attempt in before]
    return sum(outcome is not None and outcome.reason is Reason.HANG for outcome in outcomes)


def end_before(plan: LaunchPlan) -> EndBefore | None:
    """Of the attempt before, as far as its launchers left any words: the first of those that no other node's end has
    brought about, else the one that says most."""
    nodes = range(plan.spec.compute.nodes) if plan.attempt > 1 else ()
    found = [_outcome(plan, attempt=plan.attempt - 1, node_rank=node) for node in nodes]
    outcomes = [outcome for outcome in found if outcome is not None]
    told = min(outcomes, key=_says_most, default=None)
    return told and EndBefore.from_json(told.to_json())


def _says_most(outcome: Outcome) -> tuple[int, datetime]:
    order = BROUGHT_ABOUT.index(outcome.reason) if outcome.reason in BROUGHT_ABOUT else -1
    return order, outcome.ended_at


def _outcome(plan: LaunchPlan, *, attempt: int, node_rank: int) -> Outcome | None:
    claim = Fence.of(plan).records.read(_claim(attempt, node_rank))
    try:
        return NodeClaim.from_json(claim).outcome if claim else None
    except ValidationError:
        return None


def _claim(attempt: int, node_rank: int) -> str:
    return names.node_claim(Path(), attempt, node_rank).as_posix()


def _refuse_foreign_storage(plan: LaunchPlan, records: Records) -> None:
    record = _read_run_record(records)
    if record and record.owner.uid != plan.job.uid:
        owner = record.owner
        raise JobFailure(
            Reason.STORAGE_REFUSED,
            f"{FIELD}: {plan.spec.storage_uri} belongs to the job {owner.namespace}/{owner.name} "
            f"with uid {owner.uid}; name another folder, or delete {records.name} if that run is not needed any more",
        )
    for index, output in enumerate(plan.spec.outputs):
        place = output_at(plan, output.uri)
        owner_uid = place.owner_uid()
        if owner_uid == plan.job.uid or place.is_empty():
            continue
        owner_text = f"the job with uid {owner_uid}" if owner_uid else "no job (it has no manifest of ours)"
        raise JobFailure(
            Reason.STORAGE_REFUSED,
            f"spec.output[{index}].uri: {output.uri} is not empty and belongs to {owner_text}; "
            f"name another folder, or delete {place.name} if it is not needed any more",
        )


def _own(plan: LaunchPlan, records: Records) -> None:
    """Only node 0 of an attempt that holds the fence gets here, so no two of one job write at once."""
    records.begin(names.RUN_RECORD, RunRecord(owner=plan.job, spec=plan.spec).to_json(indent=2))
    _refuse_foreign_storage(plan, records)
    before = _read_run_record(records)
    if before and before.spec != plan.spec:
        # `sft run` lets a job that has saved nothing be corrected: what was looked up may be of other sources.
        is_of_these = (before.spec.model, before.spec.data) == (plan.spec.model, plan.spec.data)
        renewed = before if is_of_these else RunRecord(owner=plan.job, spec=plan.spec)
        records.replace(names.RUN_RECORD, renewed.model_copy(update={"spec": plan.spec}).to_json(indent=2))


def pins_before(plan: LaunchPlan) -> tuple[Resolved, dict[str, list[PinnedObject]]] | None:
    """The commits and objects that the first attempt took from hubs and buckets; None before it has looked them up."""
    record = _read_run_record(Fence.of(plan).records)
    return (record.resolved, record.objects) if record and record.resolved else None


def record_pins(plan: LaunchPlan, resolved: Resolved, objects: dict[str, list[PinnedObject]]) -> None:
    """For all later attempts. Called on node 0, before anything of these is used."""
    fence = Fence.of(plan)
    fence.check()
    record = _read_run_record(fence.records)
    assert record is not None
    changed = record.model_copy(update={"resolved": resolved, "objects": objects})
    fence.records.replace(names.RUN_RECORD, changed.to_json(indent=2))


def _read_run_record(records: Records) -> RunRecord | None:
    text = records.read(names.RUN_RECORD)
    if text is None:
        return None
    try:
        return RunRecord.from_json(text)
    except ValidationError:
        raise JobFailure(
            Reason.STORAGE_REFUSED,
            f"{FIELD}: {records.name}/{names.RUN_RECORD} can't be read, so its owner is unknown; name another folder",
        ) from None
