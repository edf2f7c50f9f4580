"""What a status says, in words: used by every display of a run."""

from datetime import datetime

from sftjob import progress_words
from sftjob.failure import Reason, signal_name
from sftjob.job import SFTJob
from sftjob.progress import Progress
from sftjob.spec import SFTJobSpec
from sftjob.status import AttemptKind, AttemptRecord, Phase, SFTJobStatus
from sftjob.words import counted, duration_in_words


def arithmetic(spec: SFTJobSpec) -> str:
    """What a step consists of."""
    compute = spec.compute
    ranks, processes = counted(compute.world_size, "rank"), compute.processes_per_node
    placed = f"{ranks} = {counted(compute.nodes, 'node')} x {counted(processes, 'process', 'processes')}; "
    if spec.script:
        return placed + f"each runs {spec.script.uri}"
    batch = (spec.training.global_batch_size if spec.training else None) or compute.world_size
    steps = counted(batch // compute.world_size, "accumulation step")
    return placed + f"global batch {counted(batch, 'pack')} = {ranks} x {steps} of 1 pack"


def doubts(spec: SFTJobSpec) -> list[str]:
    """What is allowed and seldom meant."""
    return [doubt for doubt in (_gpu_needed(spec), _gpus_left_idle(spec)) if doubt]


def _gpu_needed(spec: SFTJobSpec) -> str | None:
    """What a job's file can't settle alone: a local run takes the GPUs that are there, named or not."""
    lora = spec.training.lora if spec.training else None
    if lora is None or lora.quantize == "none" or spec.compute.resources.devices:
        return None
    return (
        f"training.lora.quantize: {lora.quantize} needs an NVIDIA GPU, and compute.resources.limits names none; on a "
        "cluster add nvidia.com/gpu, or the job ends with code 64"
    )


def _gpus_left_idle(spec: SFTJobSpec) -> str | None:
    gpus, processes = spec.compute.resources.gpus, spec.compute.processes_per_node
    if spec.script or gpus <= processes:
        return None
    return (
        f"compute.resources.limits: {counted(gpus, 'GPU')} for {counted(processes, 'process', 'processes')} of each "
        f"node, and each uses one; set compute.processesPerNode: {gpus}"
    )


def headline(job: SFTJob, progress: Progress | None, now: datetime) -> str:
    """Stage and detail: what is going on at this moment."""
    status = job.status
    is_preflight = status.attempts.kind is AttemptKind.PREFLIGHT
    attempt = f"attempt {status.attempts.current}{' (pre-flight)' if is_preflight else ''}"
    match status.phase:
        case Phase.PENDING:
            return "about to start"
        case Phase.QUEUED:
            return f"{attempt}: waiting in its queue"
        case Phase.SUSPENDING:
            return f"{attempt}: saving and stopping, {job.spec.run_policy.termination_grace_period_seconds} s at most"
        case Phase.RESTARTING if status.attempts.next_at is not None:
            wait = max(0, round((status.attempts.next_at - now).total_seconds()))
            return f"attempt {status.attempts.current + 1} starts in {wait} s"
        case Phase.STARTING | Phase.RUNNING if progress is None:
            return f"{attempt}: starting the launcher"
        case Phase.STARTING | Phase.RUNNING if progress is not None:
            return f"{attempt}: {progress_words.headline(progress)}"
        case _:
            return status.phase.value


def exported_in_words(step: int | None, *, last_step: int | None) -> str:
    """Of an artifact; empty where there is nothing to say."""
    return f" (step {step} of {last_step}: the lowest evaluation loss)" if step != last_step and step else ""


def end_of_attempt(record: AttemptRecord) -> str:
    """One line: when, why, who, and what is saved."""
    if record.reason is Reason.PREPARED:
        return f"attempt {record.number} {record.message}"
    step = f" after step {record.last_step}" if record.last_step else ""
    saved = f" (step {record.saved_step} is saved)" if record.saved_step else ""
    explained = _first_line(record.message) or _culprit(record)
    return f"attempt {record.number} ended{step}{saved}: {record.reason}{f': {explained}' if explained else ''}"


def trained_time(status: SFTJobStatus) -> str:
    """Over all attempts, without the time between them."""
    seconds = sum(
        (record.ended_at - record.started_at).total_seconds()
        for record in status.attempts.history
        if record.started_at is not None
    )
    return f"{duration_in_words(seconds)} in {counted(status.attempts.current, 'attempt')}"


def _culprit(record: AttemptRecord) -> str:
    parts = []
    if record.rank is not None:
        parts.append(f"rank {record.rank}")
    if record.signal is not None:
        parts.append(f"by {signal_name(record.signal)}")
    return " ".join(parts)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""
