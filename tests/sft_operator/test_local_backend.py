"""Attempts as real processes, some of which misbehave."""

import ast
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from jobs import a_job

from sft_operator.lifecycle.observation import AttemptState, NodeState
from sft_operator.lifecycle.plan import launch_plan
from sft_operator.local.backend import LocalBackend
from sft_operator.local.claims import Claims
from sftjob.failure import Reason
from sftjob.job import SFTJob
from sftjob.plan import LaunchPlan
from sftjob.spec import OutputSpec
from sftjob.status import AttemptsStatus, Phase, SFTJobStatus

T = TypeVar("T")

STUB = (sys.executable, str(Path(__file__).with_name("stub_launcher.py")))


class Attempt:
    """Attempt 1 of a job in a folder, and whoever asks about it."""

    def __init__(self, folder: Path, job: SFTJob) -> None:
        self.folder, self.job = folder, job
        self.backend = LocalBackend(folder, command=STUB)

    def create(self) -> None:
        claims = Claims(self.folder / "claims", {}, scratch=self.folder)
        asyncio.run(self.backend.create(self.job, launch_plan(self.job, 1, path_of=claims.path_of)))

    def delete(self) -> None:
        asyncio.run(self.backend.delete(self.job, 1))

    def nodes(self) -> list[NodeState]:
        attempt = asyncio.run(self.backend.observe(self.job)).attempt(1)
        return [node.state for node in attempt.nodes] if attempt else []

    def state(self) -> AttemptState | None:
        attempt = asyncio.run(self.backend.observe(self.job)).attempt(1)
        return attempt.state if attempt else None

    def reasons(self) -> list[Reason | None]:
        attempt = asyncio.run(self.backend.observe(self.job)).attempt(1)
        assert attempt is not None
        return [node.outcome.reason if node.outcome else None for node in attempt.nodes]

    def has_pid(self, rank: int = 0) -> bool:
        file = self.node(rank) / "pid"
        return file.exists() and bool(file.read_text())

    def pid(self, rank: int = 0) -> int:
        return int((self.node(rank) / "pid").read_text())

    def master_port(self, rank: int) -> str:
        """As its process was told, of which the kernel tells nothing while it becomes another program."""

        def told() -> list[str]:
            environment = Path(f"/proc/{self.pid(rank)}/environ").read_text().split("\0")
            return [entry for entry in environment if entry.startswith("SFTJOB_MASTER_PORT=")]

        return eventually(told)[0]

    def node(self, rank: int = 0) -> Path:
        return self.folder / "attempts" / "1" / f"node-{rank}"

    def wait_until_ready(self) -> None:
        eventually((self.node() / "is ready").exists)


def eventually(holds: Callable[[], T]) -> T:
    """The first true answer."""
    deadline = time.monotonic() + 300
    while not (answer := holds()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
    return answer


def is_running(pid: int) -> bool:
    """Whether it exists and is no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Attempt]]:
    made: list[Attempt] = []

    def make(behaviour: str, *, nodes: int = 1, grace_seconds: int = 120) -> Attempt:
        monkeypatch.setenv("STUB_BEHAVIOUR", behaviour)
        status = SFTJobStatus(phase=Phase.RUNNING, attempts=AttemptsStatus(current=1))
        job = a_job(nodes=nodes, status=status)
        # Below what users may ask for: a test should not wait that long.
        policy = job.spec.run_policy.model_copy(update={"termination_grace_period_seconds": grace_seconds})
        job = job.model_copy(update={"spec": job.spec.model_copy(update={"run_policy": policy})})
        made.append(Attempt(tmp_path, job))
        return made[-1]

    yield make
    for one in made:
        one.backend.kill(one.job)
        for child in one.folder.glob("attempts/*/*/child"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child.read_text()), signal.SIGKILL)


def test_an_attempt_lives_from_its_creation_until_its_last_word(attempt: Callable[..., Attempt]) -> None:
    one = attempt("succeeds")
    assert one.state() is None
    one.create()
    assert one.state() in (AttemptState.RUNNING, AttemptState.ENDED)
    eventually(lambda: one.state() is AttemptState.ENDED)
    assert one.reasons() == [Reason.SUCCEEDED]


def test_each_node_is_told_its_place(attempt: Callable[..., Attempt]) -> None:
    one = attempt("tells its placement", nodes=2)
    one.create()
    eventually(lambda: one.state() is AttemptState.ENDED)
    told = [ast.literal_eval((one.node(rank) / "launcher.log").read_text()) for rank in (0, 1)]
    port = told[0].pop("SFTJOB_MASTER_PORT")
    assert told[1].pop("SFTJOB_MASTER_PORT") == port
    assert 1024 < int(port) < 65536
    assert told == [
        {
            "SFTJOB_MASTER_ADDRESS": "127.0.0.1",
            "SFTJOB_NODE_RANK": str(rank),
            "SFTJOB_POD_UID": f"tiny-4a49acf8-a1-{rank}",
            "SFTJOB_SCRATCH": str(one.node(rank)),
            "SFTJOB_SERVE_ADDRESS": "127.0.0.1:0",
            "SFTJOB_TERMINATION_MESSAGE": str(one.node(rank) / "outcome.json"),
        }
        for rank in (0, 1)
    ]


def test_creating_an_attempt_again_starts_only_what_is_missing(attempt: Callable[..., Attempt]) -> None:
    one = attempt("saves", nodes=2)
    one.create()
    eventually(lambda: one.has_pid() and one.has_pid(1))
    pids = one.pid(0), one.pid(1)
    one.create()
    assert (one.pid(0), one.pid(1)) == pids
    os.kill(one.pid(1), signal.SIGKILL)
    eventually(lambda: one.nodes() == [NodeState.RUNNING, NodeState.ENDED])
    one.create()
    assert one.nodes() == [NodeState.RUNNING, NodeState.ENDED]

    (one.node(1) / "pid").unlink()
    assert one.nodes() == [NodeState.RUNNING, NodeState.MISSING]
    one.create()
    eventually(lambda: one.has_pid(1))
    assert one.pid(0) == pids[0]
    assert one.nodes() == [NodeState.RUNNING, NodeState.RUNNING]
    assert one.master_port(0) == one.master_port(1)


def test_an_end_without_a_word_is_an_end_without_outcome(attempt: Callable[..., Attempt]) -> None:
    one = attempt("exits without a word")
    one.create()
    eventually(lambda: one.state() is AttemptState.ENDED)
    assert one.reasons() == [None]


def test_a_torn_outcome_is_none(attempt: Callable[..., Attempt]) -> None:
    one = attempt("succeeds")
    one.create()
    eventually(lambda: one.state() is AttemptState.ENDED)
    (one.node() / "outcome.json").write_text('{"attempt": 1, "nodeRa')
    assert one.reasons() == [None]


def test_an_attempt_outlives_who_started_it_and_is_adopted(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    one = attempt("saves")
    starter = f"""
import asyncio, sys, time
from pathlib import Path
sys.path[:0] = {sys.path!r}
from test_local_backend import Attempt
from sftjob.job import SFTJob
from sftjob.plan import LaunchPlan
from sftjob.spec import OutputSpec
Attempt(Path({str(tmp_path)!r}), SFTJob.from_json({one.job.to_json()!r})).create()
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", starter])
    one.wait_until_ready()
    process.kill()
    process.wait()
    pid = one.pid()
    assert one.state() is AttemptState.RUNNING
    one.create()
    assert one.pid() == pid
    one.delete()
    eventually(lambda: one.state() is AttemptState.ENDED)
    assert one.reasons() == [Reason.PREEMPTED]


def test_a_launcher_does_not_hear_the_terminal(attempt: Callable[..., Attempt]) -> None:
    one = attempt("saves")
    one.create()
    eventually(one.has_pid)
    assert os.getsid(one.pid()) == one.pid()


def test_what_ignores_the_signal_is_killed_after_its_grace_by_whoever_asks_then(
    attempt: Callable[..., Attempt], tmp_path: Path
) -> None:
    one = attempt("ignores SIGTERM", grace_seconds=3600)
    one.create()
    one.wait_until_ready()
    one.delete()
    one.delete()
    assert one.state() is AttemptState.ENDING
    # As if it had been asked an hour ago.
    (one.node() / "terminated").write_text(str(time.monotonic() - 3600))
    successor = Attempt(tmp_path, one.job)
    successor.delete()
    eventually(lambda: successor.state() is AttemptState.ENDED)
    assert one.reasons() == [None]


def test_a_grace_that_is_edited_meanwhile_is_for_the_next_attempt(attempt: Callable[..., Attempt]) -> None:
    one = attempt("ignores SIGTERM", grace_seconds=3600)
    one.create()
    one.wait_until_ready()
    policy = one.job.spec.run_policy.model_copy(update={"termination_grace_period_seconds": 0})
    one.job = one.job.model_copy(update={"spec": one.job.spec.model_copy(update={"run_policy": policy})})
    one.delete()
    one.delete()
    time.sleep(0.1)
    assert one.state() is AttemptState.ENDING


def test_deleting_never_waits(attempt: Callable[..., Attempt]) -> None:
    one = attempt("ignores SIGTERM")
    one.create()
    one.wait_until_ready()
    one.delete()
    one.delete()
    assert one.state() is AttemptState.ENDING
    assert is_running(one.pid())


def test_a_launchers_child_that_outlives_it_does_not_pass_for_it(attempt: Callable[..., Attempt]) -> None:
    one = attempt("has a child")
    one.create()
    one.wait_until_ready()
    assert one.state() is AttemptState.RUNNING
    os.kill(one.pid(), signal.SIGKILL)
    eventually(lambda: not is_running(one.pid()))
    assert is_running(int((one.node() / "child").read_text()))
    assert one.state() is AttemptState.ENDED


def test_ended_children_are_reaped(attempt: Callable[..., Attempt]) -> None:
    one = attempt("exits without a word")
    one.create()
    eventually(lambda: one.state() is AttemptState.ENDED)
    eventually(lambda: bool(one.state()) and not Path(f"/proc/{one.pid()}").exists())


def test_a_pid_that_another_process_has_by_now_is_not_signalled(attempt: Callable[..., Attempt]) -> None:
    one = attempt("exits without a word")
    one.create()
    eventually(lambda: one.state() is AttemptState.ENDED)
    bystander = subprocess.Popen(["sleep", "600"])
    (one.node() / "pid").write_text(f"{bystander.pid}\n")
    one.delete()
    one.backend.kill(one.job)
    time.sleep(0.1)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_each_node_has_its_own_copy_of_what_lies_in_buckets(tmp_path: Path) -> None:
    spec = a_job(nodes=2).spec.model_copy(update={"output": [OutputSpec(uri="s3://bucket/tuned")]})
    job = a_job(nodes=2).model_copy(update={"spec": spec})
    claims = Claims(Path("/c"), {}, scratch=tmp_path)
    backend = LocalBackend(tmp_path, command=("sh", "-c", "echo $2 > $SFTJOB_SCRATCH/plan", "launcher"))
    asyncio.run(backend.create(job, launch_plan(job, 1, path_of=claims.path_of)))
    paths = []
    for rank in range(2):
        file = backend.node(1, rank).folder / "plan"
        eventually(lambda file=file: file.exists() and file.read_text().endswith("\n"))
        plan = LaunchPlan.from_json(file.read_text())
        paths.append([plan.storage, plan.path("s3://bucket/tuned"), plan.path("pvc://models/base")])
    assert paths == [
        [f"{tmp_path}/s3/bucket/tuned.checkpoints", f"{tmp_path}/s3/bucket/tuned", "/c/models/base"],
        [f"{tmp_path}/node-1/s3/bucket/tuned.checkpoints", f"{tmp_path}/node-1/s3/bucket/tuned", "/c/models/base"],
    ]
