"""What a status says, in words: used by every display of a run."""

import re
from datetime import datetime

from sftjob.failure import Reason, signal_name
from sftjob.job import SFTJob
from sftjob.progress import Progress, Stage
from sftjob.spec import SFTJobSpec
from sftjob.status import AttemptKind, AttemptRecord, Phase, SFTJobStatus


def arithmetic(spec: SFTJobSpec) -> str:
    """What a step consists of."""
    compute = spec.compute
    ranks, processes = _counted(compute.world_size, "rank"), compute.processes_per_node
    placed = f"{ranks} = {_counted(compute.nodes, 'node')} x {_counted(processes, 'process', 'processes')}; "
    if spec.script:
        return placed + f"each runs {spec.script.uri}"
    batch = (spec.training.global_batch_size if spec.training else None) or compute.world_size
    steps = _counted(batch // compute.world_size, "accumulation step")
    return placed + f"global batch {_counted(batch, 'pack')} = {ranks} x {steps} of 1 pack"


def gpu_needed(spec: SFTJobSpec) -> str | None:
    """What a job's file can't settle alone: a local run takes the GPUs that are there, named or not."""
    lora = spec.training.lora if spec.training else None
    if lora is None or lora.quantize == "none" or spec.compute.resources.devices:
        return None
    return (
        f"training.lora.quantize: {lora.quantize} needs an NVIDIA GPU, and compute.resources.limits names none; on a "
        "cluster add nvidia.com/gpu, or the job ends with code 64"
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
            detail = f": {progress.detail}" if progress.detail else ""
            return f"{attempt}: {stage_in_words(progress.stage)}{detail}"
        case _:
            return status.phase.value


def stage_in_words(stage: Stage) -> str:
    """`PreparingData` as `preparing data`."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", stage.value).lower()


def training_figures(progress: Progress) -> list[str]:
    """Of the last step and evaluation, the most wanted first."""
    evaluated = ""
    if progress.eval_loss is not None and progress.best_eval_loss is not None:
        is_best = progress.eval_loss == progress.best_eval_loss
        lowest = "" if is_best else f" (lowest {progress.best_eval_loss:.3f}, step {progress.best_step})"
        evaluated = f"evaluation loss {progress.eval_loss:.3f}{lowest}"
    figures = [
        f"loss {progress.loss:.3f}" if progress.loss is not None else "",
        evaluated,
        f"lr {progress.learning_rate:.2e}" if progress.learning_rate is not None else "",
        f"grad norm {progress.grad_norm:.3g}" if progress.grad_norm is not None else "",
        f"{progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second is not None else "",
        f"MFU {progress.mfu:.0%}" if progress.mfu is not None else "",
        f"data wait {progress.data_wait:.0%}" if progress.data_wait is not None else "",
        f"packs in parts of {progress.micro_batch_tokens} tokens" if progress.micro_batch_tokens is not None else "",
        f"memory {progress.memory_bytes / 1e9:.1f} GB" if progress.memory_bytes is not None else "",
        f"{_counted(progress.skipped_steps, 'step')} skipped" if progress.skipped_steps else "",
        f"saved step {progress.saved_step}" if progress.saved_step is not None else "",
    ]
    return [figure for figure in figures if figure]


def how_far(progress: Progress) -> str:
    """`step 420/1000`"""
    return f"step {progress.step}/{progress.total_steps}" if progress.total_steps else f"step {progress.step}"


def time_left(progress: Progress) -> str:
    return f"{duration_in_words(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""


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


def duration_in_words(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def trained_time(status: SFTJobStatus) -> str:
    """Over all attempts, without the time between them."""
    seconds = sum(
        (record.ended_at - record.started_at).total_seconds()
        for record in status.attempts.history
        if record.started_at is not None
    )
    return f"{duration_in_words(seconds)} in {_counted(status.attempts.current, 'attempt')}"


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _culprit(record: AttemptRecord) -> str:
    parts = []
    if record.rank is not None:
        parts.append(f"rank {record.rank}")
    if record.signal is not None:
        parts.append(f"by {signal_name(record.signal)}")
    return " ".join(parts)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""
