"""Attempts as processes of this machine: `<work folder>/attempts/<N>/node-<k>/`, one launcher each."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft_operator.lifecycle.observation import AttemptObservation, NodeState, Observation
from sft_operator.lifecycle.preflight import launchers
from sft_operator.lifecycle.silence import Silence
from sft_operator.local.files import replace_file
from sft_operator.local.node import LocalNode
from sftjob import names
from sftjob.job import SFTJob
from sftjob.plan import LaunchPlan

LAUNCHER = (sys.executable, "-m", "sft_trainer.launcher")


class LocalBackend:
    def __init__(self, work_folder: Path, *, command: Sequence[str] = LAUNCHER) -> None:
        self._folder = work_folder
        self._attempts = work_folder / names.ATTEMPTS
        self._command = command
        self._children: list[subprocess.Popen[bytes]] = []
        self._silence = Silence()

    async def observe(self, job: SFTJob) -> Observation:
        self._reap()
        attempts = tuple(
            attempt
            for number in self._numbers()
            if (attempt := self._observe_attempt(job, number))
            and (attempt.is_live or number == job.status.attempts.current)
        )
        current = job.status.attempts.current
        running = next((attempt for attempt in attempts if attempt.number == current), None)
        progress, now = self.node(current, 0).progress(), time.monotonic()
        silent = self._silence.seconds(job.metadata.uid, running, progress, heard_at=now, now=now)
        return Observation(attempts, progress, silent_seconds=silent)

    async def create(self, job: SFTJob, plan: LaunchPlan) -> None:
        outputs = [plan.storage, *(plan.path(output.uri) for output in plan.spec.outputs)]
        for path in outputs:
            # The launcher tells what it can't write, with its field.
            with contextlib.suppress(OSError):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
        port = self._master_port(plan.attempt)
        if not self._grace_file(plan.attempt).exists():
            grace_seconds = plan.spec.run_policy.termination_grace_period_seconds
            replace_file(self._grace_file(plan.attempt), str(grace_seconds))
        for node in self._nodes(job, plan.attempt):
            if node.observe().state is NodeState.MISSING:
                command = [*self._command, "--plan", self._plan_of(node, plan).to_json()]
                self._children.append(node.start(command, self._environment(job, plan, node, port=port)))

    async def delete(self, job: SFTJob, attempt: int) -> None:
        # What its launchers were told, though the job's policy may have changed since.
        file = self._grace_file(attempt)
        # Attempts of an older version have none.
        policy = job.spec.run_policy
        grace_seconds = int(file.read_text()) if file.exists() else policy.termination_grace_period_seconds
        for node in self._nodes(job, attempt):
            node.terminate(grace_seconds=grace_seconds)

    def kill(self, job: SFTJob) -> None:
        """Ends every launcher at once and unsaved; what it started dies with it."""
        for number in self._numbers():
            for node in self._nodes(job, number):
                node.kill()

    def node(self, attempt: int, rank: int) -> LocalNode:
        return LocalNode(self._attempts / str(attempt) / f"node-{rank}", rank=rank)

    def _nodes(self, job: SFTJob, attempt: int) -> Iterator[LocalNode]:
        return (self.node(attempt, rank) for rank in range(launchers(job, attempt)))

    def _numbers(self) -> list[int]:
        if not self._attempts.exists():
            return []
        return sorted(int(folder.name) for folder in self._attempts.iterdir() if folder.name.isdecimal())

    def _observe_attempt(self, job: SFTJob, number: int) -> AttemptObservation | None:
        nodes = list(self._nodes(job, number))
        seen = tuple(node.observe() for node in nodes)
        if all(node.state is NodeState.MISSING for node in seen):
            return None
        return AttemptObservation(number, seen, is_deleting=any(node.is_terminated for node in nodes))

    def _plan_of(self, node: LocalNode, plan: LaunchPlan) -> LaunchPlan:
        """Each node has its own copy of what lies in buckets, as in a cluster."""
        if node.rank == 0:
            return plan
        here, own = self._folder.absolute(), self._folder.absolute() / f"node-{node.rank}"
        mounts = [
            mount.model_copy(update={"path": str(own / Path(mount.path).relative_to(here))})
            if mount.uri.startswith(names.S3)
            else mount
            for mount in plan.mounts
        ]
        return plan.model_copy(update={"mounts": mounts})

    def _environment(self, job: SFTJob, plan: LaunchPlan, node: LocalNode, *, port: int) -> dict[str, str]:
        name = names.attempt_name(job.metadata.name, job.metadata.uid, plan.attempt)
        variables = {variable.name: variable.value for variable in plan.spec.compute.env if variable.value is not None}
        return (
            os.environ
            | variables
            | {
                names.NODE_RANK_VARIABLE: str(node.rank),
                names.MASTER_ADDRESS_VARIABLE: "127.0.0.1",
                names.MASTER_PORT_VARIABLE: str(port),
                names.SCRATCH_VARIABLE: str(node.folder.absolute()),
                names.TERMINATION_MESSAGE_VARIABLE: str(node.outcome_file.absolute()),
                names.SERVE_ADDRESS_VARIABLE: "127.0.0.1:0",
                names.POD_UID_VARIABLE: f"{name}-{node.rank}",
            }
        )

    def _master_port(self, attempt: int) -> int:
        """One for all nodes of an attempt, kept in case that some are started later than others."""
        file = self._attempts / str(attempt) / "master-port"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                replace_file(file, str(listener.getsockname()[1]))
        return int(file.read_text())

    def _grace_file(self, attempt: int) -> Path:
        return self._attempts / str(attempt) / "grace-seconds"

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]
