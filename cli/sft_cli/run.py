"""`sft run`: the operator's own loop over one job of this machine, until it has ended or is suspended."""

import asyncio
import contextlib
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from sft_cli.display import Display
from sft_cli.plot import plot_metrics
from sft_cli.sentences import arithmetic, exported_in_words, trained_time
from sft_cli.work_folder import WorkFolder
from sft_operator.lifecycle.backend import Conflict
from sft_operator.lifecycle.reconcile import reconcile
from sft_operator.local.backend import LocalBackend
from sftjob.base import utc_now
from sftjob.failure import ExitCode, exit_code
from sftjob.job import SFTJob
from sftjob.names import S3
from sftjob.status import Phase

POLL_SECONDS = 0.5
SHELL_SIGNAL_BASE = 128


async def run_job(folder: WorkFolder, console: Console, *, again: str) -> int:
    """The exit code of the job. `again` is the command that goes on with it."""
    backend, claims, key = LocalBackend(folder.path), folder.claims(), folder.key
    job = folder.job()
    with Display(console, known=job.status) as display, _stop_signals() as stop:
        display.say(arithmetic(job.spec))
        for attempt in (await backend.observe(job)).live():
            display.say(f"attempt {attempt.number} is still at work: going on with it")
        while True:
            if stop.is_requested and not job.spec.run_policy.suspend:
                _suspend(folder, job)
            if stop.is_impatient:
                backend.kill(job)
                display.say(f"killed; what was saved before is intact. Go on with: {again}")
                return SHELL_SIGNAL_BASE + signal.SIGINT
            if stop.number == signal.SIGHUP and console.is_terminal:
                display.detach()
            try:
                due = await reconcile(key, backend=backend, store=folder.store, path_of=claims.path_of, clock=utc_now)
            except Conflict:
                due = 0.0
            job = folder.job()
            observation = await backend.observe(job)
            if samples := backend.node(job.status.attempts.current, 0).samples():
                display.data(samples)
            display.show(job, observation.progress, now=utc_now())
            if _is_at_rest(job) and not any(observation.live()):
                break
            await stop.wait(POLL_SECONDS if due is None else min(POLL_SECONDS, due))
    if job.status.phase is Phase.SUSPENDED:
        saved = job.status.attempts.saved_step
        kept = f"step {saved} is saved" if saved else "nothing was saved yet"
        console.print(f"suspended; {kept}. Go on with: {again}", markup=False, highlight=False, soft_wrap=True)
        assert stop.number is not None
        return SHELL_SIGNAL_BASE + stop.number
    return tell_result(folder, console)


def tell_result(folder: WorkFolder, console: Console) -> int:
    """Of a job that has ended: what came out, or why not. Returns its exit code."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    job, claims = folder.job(), folder.claims()
    status, last = job.status, job.status.attempts.history[0]
    metrics = folder.metrics()
    rows = metrics.rows
    if rows:
        plot_metrics(metrics, folder.loss_curve, title=job.metadata.name)
    if status.data is not None:
        for index, line in enumerate(status.data.in_words()):
            say(line if index else f"{status.data.title}: {line}")
    if status.phase is Phase.SUCCEEDED:
        final_loss = f", final loss {rows[-1].loss:.3f}" if rows else ""
        best = f", lowest evaluation loss {metrics.best.loss:.3f}" if metrics.best else ""
        say(f"{job.metadata.name} succeeded: {trained_time(status)}{final_loss}{best}")
        steps = {artifact.uri: artifact.step for artifact in status.artifacts}
        for output in job.spec.outputs:
            step = exported_in_words(steps.get(output.uri), last_step=last.last_step)
            say(f"model: {output.uri if output.uri.startswith(S3) else claims.path_of(output.uri)}{step}")
    else:
        failed = next(condition for condition in status.conditions if condition.type == "Failed")
        say(f"{job.metadata.name} failed: {failed.reason}: {failed.message}")
        node = LocalBackend(folder.path).node(last.number, last.node_rank or 0)
        if exit_code(last.reason) == ExitCode.SOFTWARE:
            for line in last.log_tail.splitlines():
                say(f"  | {line}")
        say(f"log: {node.log}")
    if job.spec.script and status.phase is Phase.SUCCEEDED:
        say(f"log: {LocalBackend(folder.path).node(last.number, 0).log}")
    if rows:
        say(f"loss curve: {folder.loss_curve}")
    return ExitCode.SUCCEEDED if status.phase is Phase.SUCCEEDED else exit_code(last.reason)


def run_command(manifest: Path, folder: WorkFolder) -> str:
    return shlex.join(["sft", "run", str(manifest), "--work-dir", str(folder.path)])


def _is_at_rest(job: SFTJob) -> bool:
    return job.status.phase.is_final or (job.status.phase is Phase.SUSPENDED and job.spec.run_policy.suspend)


def _suspend(folder: WorkFolder, job: SFTJob) -> None:
    policy = job.spec.run_policy.model_copy(update={"suspend": True})
    folder.store.write_spec(job, job.spec.model_copy(update={"run_policy": policy}))


class _Stop:
    """What the user's signals ask for: the first to save and stop, a second Ctrl-C to kill."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self.is_impatient = False
        self._changed = asyncio.Event()

    @property
    def is_requested(self) -> bool:
        return self.number is not None

    def receive(self, number: signal.Signals) -> None:
        if self.number is None:
            self.number = number
        elif number == signal.SIGINT:
            self.is_impatient = True
        self._changed.set()

    async def wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
        self._changed.clear()


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop, loop = _Stop(), asyncio.get_running_loop()
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # `nohup` has one of them ignored.
    numbers = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, stop.receive, number)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
