"""A job before and after a change of its status in, the events of `kubectl describe` out. Pure; called by the store.

An event's name is made from what it says, so that one told twice is one event.
"""

import hashlib
from collections.abc import Iterator

from sft_operator.kubernetes.api import Object
from sft_operator.lifecycle.preflight import attempt_in_words
from sftjob import names
from sftjob.base import utc_now
from sftjob.failure import Reason
from sftjob.job import SFTJob
from sftjob.status import AttemptRecord, Condition, Phase, SFTJobStatus

MESSAGE_LIMIT = 1024
"""What the API server takes."""


def story(job: SFTJob, *, before: SFTJobStatus) -> list[Object]:
    return [_event(job, *told) for told in _told(before, job.status)]


def _told(before: SFTJobStatus, after: SFTJobStatus) -> Iterator[tuple[str, str, str]]:
    """Type, reason and message, in the order of what happened."""
    recorded = {record.number for record in before.attempts.history}
    for record in reversed(after.attempts.history):
        if record.number in recorded or record.reason is Reason.SUCCEEDED:
            continue
        if record.reason is Reason.PREPARED:
            yield "Normal", record.reason.value, f"attempt {record.number} {record.message}"
        else:
            yield "Warning", record.reason.value, _end(record)
    if after.attempts.current > before.attempts.current:
        yield "Normal", "AttemptStarted", f"{attempt_in_words(after.attempts)} started"
    if after.phase is Phase.RUNNING and before.phase is not Phase.RUNNING:
        yield "Normal", "Running", f"attempt {after.attempts.current} runs"
    if after.phase is Phase.QUEUED and before.phase is not Phase.QUEUED:
        yield "Normal", "Queued", f"attempt {after.attempts.current} waits for its queue to let it run"
    saved = after.progress.saved_step if after.progress else None
    if saved is not None and saved != (before.progress.saved_step if before.progress else None):
        yield "Normal", "CheckpointSaved", f"attempt {after.attempts.current} saved step {saved}"
    stalled, stalled_before = _condition(after, "Stalled"), _condition(before, "Stalled")
    if (
        stalled
        and after.phase is not Phase.FAILED
        and (stalled_before is None or stalled.reason != stalled_before.reason)
    ):
        yield "Warning", stalled.reason, stalled.message
    if after.phase is Phase.SUSPENDED and before.phase is not Phase.SUSPENDED:
        yield "Normal", "Suspended", f"suspended after attempt {after.attempts.current}"
    if after.phase is Phase.SUCCEEDED and before.phase is not Phase.SUCCEEDED:
        places = ", ".join(artifact.uri for artifact in after.artifacts)
        yield "Normal", "Succeeded", f"attempt {after.attempts.current} went to the end{places and f': {places}'}"
    failed = _condition(after, "Failed")
    if failed and before.phase is not Phase.FAILED:
        yield "Warning", "Failed", f"{failed.reason}: {failed.message}"


def _end(record: AttemptRecord) -> str:
    where = [f"rank {record.rank}" if record.rank is not None else None]
    where += [f"pod {record.pod}" if record.pod else None, f"node {record.node}" if record.node else None]
    place = ", ".join(part for part in where if part)
    saved = "no step is saved" if record.saved_step is None else f"step {record.saved_step} is saved"
    lost = f", {record.lost_steps} after it are lost" if record.lost_steps else ""
    said = f": {record.message}" if record.message else ""
    return f"attempt {record.number} ended ({place or 'no pod'}; {saved}{lost}){said}"


def _condition(status: SFTJobStatus, type_: str) -> Condition | None:
    return next((c for c in status.conditions if c.type == type_ and c.status == "True"), None)


def _event(job: SFTJob, type_: str, reason: str, message: str) -> Object:
    metadata, now = job.metadata, utc_now().isoformat().replace("+00:00", "Z")
    message = message[:MESSAGE_LIMIT]
    # The number of the attempt belongs to what is told: the same words about another attempt are another event.
    said = f"{metadata.uid} {job.status.attempts.current} {reason} {message}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata.name}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
            "namespace": metadata.namespace,
        },
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
        },
        "type": type_,
        "reason": reason,
        "message": message,
        "source": {"component": "sft-operator"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
