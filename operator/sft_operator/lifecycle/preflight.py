"""The pre-flight: an attempt of one launcher without accelerators, which prepares and stops, before one that trains.

Pure. `decide` asks whether one is due when it announces an attempt; backends ask how many launchers an attempt has,
whoever tells of an attempt how to name it.
"""

from sftjob.job import SFTJob
from sftjob.spec import SFTJobSpec
from sftjob.status import AttemptKind, AttemptsStatus


def next_kind(attempts: AttemptsStatus, spec: SFTJobSpec) -> AttemptKind:
    """Of the attempt to come. What has saved a checkpoint has prepared too, by an older version or in training."""
    wanted = {"auto": bool(spec.compute.resources.devices), "always": True, "never": False}[spec.run_policy.preflight]
    is_ready = attempts.prepared is not None or attempts.saved_step is not None
    return AttemptKind.PREFLIGHT if wanted and not is_ready else AttemptKind.TRAINING


def launchers(job: SFTJob, attempt: int) -> int:
    """One a node. Of an attempt that the history has forgotten, those of one that trains: what is missing is ended."""
    attempts = job.status.attempts
    kinds = {record.number: record.kind for record in attempts.history} | {attempts.current: attempts.kind}
    return 1 if kinds.get(attempt) is AttemptKind.PREFLIGHT else job.spec.compute.nodes


def attempt_in_words(attempts: AttemptsStatus) -> str:
    """The newest, with what a reader would wonder about."""
    told = f"attempt {attempts.current}"
    is_preflight = attempts.kind is AttemptKind.PREFLIGHT
    return f"{told} (pre-flight on one worker, without accelerators)" if is_preflight else told
