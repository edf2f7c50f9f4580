"""Random lives of a job, through `reconcile`: nodes start and die, attempts vanish, the operator crashes anywhere.

The world below is a backend and a store in memory; its checks stand where the operator acts on it.
"""

from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from jobs import NOW, a_job, an_outcome, seen, some_progress

from sft_operator.lifecycle.backend import Conflict, JobKey
from sft_operator.lifecycle.observation import NodeState, Observation
from sft_operator.lifecycle.reconcile import reconcile
from sftjob.failure import NEVER_RETRIED, Reason
from sftjob.job import SFTJob
from sftjob.outcome import Outcome
from sftjob.plan import LaunchPlan
from sftjob.progress import Progress
from sftjob.status import Phase

KEY = JobKey("default", "tiny")


class Crash(Exception):
    """The operator's process dies here."""


class World:
    """A cluster of one job: what exists, and what is stored."""

    def __init__(self, job: SFTJob) -> None:
        self.job = job
        self.attempts: dict[int, list[NodeState | Outcome | None]] = {}
        self.deleting: set[int] = set()
        self.progress: Progress | None = None
        self.newest_created = 0
        self.seen_running: set[int] = set()
        self.calls_until_crash: int | None = None
        self.between_read_and_write: Callable[[], None] | None = None

    # The store.

    async def read(self, key: JobKey) -> SFTJob | None:
        assert key == KEY
        return self.job

    async def write_status(self, job: SFTJob) -> SFTJob:
        self._may_crash()
        if job.metadata.resource_version != self.job.metadata.resource_version:
            raise Conflict
        assert job.spec == self.job.spec
        assert job.status != self.job.status, "a write that changes nothing"
        assert job.status.attempts.current >= self.job.status.attempts.current
        self.replace(job)
        if job.status.phase is Phase.RUNNING:
            self.seen_running.add(job.status.attempts.current)
        self._may_crash()
        return self.job

    def replace(self, job: SFTJob) -> None:
        version = str(int(self.job.metadata.resource_version) + 1)
        metadata = job.metadata.model_copy(update={"resource_version": version})
        self.job = job.model_copy(update={"metadata": metadata})

    # The backend.

    async def observe(self, job: SFTJob) -> Observation:
        assert job.metadata.uid == self.job.metadata.uid
        attempts = tuple(
            seen(number, *nodes, is_deleting=number in self.deleting) for number, nodes in sorted(self.attempts.items())
        )
        if self.between_read_and_write:
            self.between_read_and_write()
            self.between_read_and_write = None
        return Observation(attempts, self.progress)

    async def create(self, job: SFTJob, plan: LaunchPlan) -> None:
        number, stored = plan.attempt, self.job.status.attempts
        assert number == stored.current, "created without being announced"
        assert not stored.current_has_ended, "created after its end was recorded"
        assert number in self.attempts or number not in self.seen_running, "a lost attempt was created again"
        assert number >= self.newest_created, "a number went back"
        assert not [n for n in self.live() if n != number], "two attempts at once"
        assert self.job.status.phase in (Phase.STARTING, Phase.RUNNING)
        self._may_crash()
        nodes = self.attempts.setdefault(number, [NodeState.MISSING] * job.spec.compute.nodes)
        for rank, node in enumerate(nodes):
            if node is NodeState.MISSING:
                nodes[rank] = NodeState.PENDING
                if rank == 0:
                    self._may_crash()
        self.newest_created = number
        self._may_crash()

    async def delete(self, job: SFTJob, attempt: int) -> None:
        assert job.status == self.job.status, "acted on a status that is not stored"
        self._may_crash()
        if attempt in self.live():
            self.deleting.add(attempt)
        else:
            assert attempt != self.job.status.attempts.current, "the logs of the newest attempt are gone"
            del self.attempts[attempt]
        self._may_crash()

    def live(self) -> list[int]:
        return [
            number
            for number, nodes in self.attempts.items()
            if any(node in (NodeState.PENDING, NodeState.RUNNING) for node in nodes)
        ]

    def _may_crash(self) -> None:
        """Stands before and after everything that the operator changes."""
        if self.calls_until_crash == 0:
            raise Crash
        if self.calls_until_crash is not None:
            self.calls_until_crash -= 1


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return finished.value
    raise AssertionError("it waits")


class LifeOfAJob(RuleBasedStateMachine):
    world: World
    now: datetime = NOW
    final_status: Any = None

    @initialize(
        nodes=st.integers(1, 2), retries=st.sampled_from([0, 1, 9]), disruption_retries=st.sampled_from([0, 1, 9])
    )
    def begin(self, nodes: int, retries: int, disruption_retries: int) -> None:
        self.world = World(a_job(nodes=nodes, retries=retries, disruptionRetries=disruption_retries))

    def one_pass(self) -> float | None:
        return drive(
            reconcile(
                KEY, backend=self.world, store=self.world, path_of=lambda uri: f"/mnt/{uri}", clock=lambda: self.now
            )
        )

    @rule()
    def reconcile(self) -> None:
        self.settled_pass()

    def settled_pass(self) -> None:
        due = self.one_pass()
        status = self.world.job.status
        waits_for = {
            "its end": status.phase.is_final,
            "a suspension": status.phase is Phase.SUSPENDED and self.world.job.spec.run_policy.suspend,
            "a live attempt": bool(self.world.live()),
            "a time": due is not None,
        }
        assert any(waits_for.values()), "it waits for nothing"

    @rule(calls=st.integers(0, 5))
    def reconcile_and_crash(self, calls: int) -> None:
        self.world.calls_until_crash = calls
        try:
            self.one_pass()
        except Crash:
            pass
        finally:
            self.world.calls_until_crash = None

    @rule()
    def the_user_edits_between_read_and_write(self) -> None:
        self.world.between_read_and_write = self.toggle_suspend
        self.one_pass()

    @rule()
    def toggle_suspend(self) -> None:
        job = self.world.job
        policy = job.spec.run_policy.model_copy(update={"suspend": not job.spec.run_policy.suspend})
        self.world.replace(job.model_copy(update={"spec": job.spec.model_copy(update={"run_policy": policy})}))

    @rule(seconds=st.sampled_from([1, 10, 300]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.world.live())
    @rule(data=st.data())
    def a_node_starts(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.world.live()))
        nodes = self.world.attempts[number]
        for rank, node in enumerate(nodes):
            if node is NodeState.PENDING:
                nodes[rank] = NodeState.RUNNING
                break

    @precondition(lambda self: self.world.live())
    @rule(
        data=st.data(),
        reason=st.sampled_from([None, *sorted(set(Reason) - NEVER_RETRIED), Reason.INVALID_DATA]),
        saved=st.none() | st.integers(1, 50),
        is_proven=st.booleans(),
    )
    def a_node_ends(self, data: st.DataObject, reason: Reason | None, saved: int | None, is_proven: bool) -> None:
        number = data.draw(st.sampled_from(self.world.live()))
        nodes = self.world.attempts[number]
        alive = [rank for rank, node in enumerate(nodes) if node in (NodeState.PENDING, NodeState.RUNNING)]
        rank = data.draw(st.sampled_from(alive))
        digest = "sha256:00" if is_proven else None
        nodes[rank] = reason and an_outcome(
            reason, attempt=number, node_rank=rank, saved_step=saved, final_digest=digest
        )

    @rule(reason=st.sampled_from([None, Reason.RANK_KILLED, Reason.PREEMPTED]), saved=st.none() | st.integers(1, 50))
    def an_attempt_lives_and_dies(self, reason: Reason | None, saved: int | None) -> None:
        self.settled_pass()
        for number in self.world.live():
            self.world.attempts[number] = [
                reason and an_outcome(reason, attempt=number, node_rank=rank, saved_step=saved)
                for rank in range(self.world.job.spec.compute.nodes)
            ]
        self.settled_pass()
        self.now += timedelta(seconds=300)

    @precondition(lambda self: self.world.attempts)
    @rule(data=st.data())
    def an_attempt_vanishes(self, data: st.DataObject) -> None:
        del self.world.attempts[data.draw(st.sampled_from(sorted(self.world.attempts)))]

    @precondition(lambda self: self.world.job.status.attempts.current > 1)
    @rule(data=st.data())
    def an_older_attempt_is_seen_alive(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, self.world.job.status.attempts.current - 1))
        self.world.attempts[number] = [NodeState.RUNNING] * self.world.job.spec.compute.nodes

    @rule(attempt=st.integers(1, 6), step=st.integers(0, 50), saved=st.none() | st.integers(1, 50))
    def a_report_arrives(self, attempt: int, step: int, saved: int | None) -> None:
        seconds = (self.now - NOW).total_seconds()
        self.world.progress = some_progress(attempt=attempt, step=step, saved_step=saved, seconds=seconds)

    @invariant()
    def budgets_are_respected(self) -> None:
        status = self.world.job.status
        attempts, policy = status.attempts, self.world.job.spec.run_policy
        spent = [
            attempts.failures - policy.retries,
            attempts.disruptions - policy.disruption_retries,
            attempts.without_progress - 2,
        ]
        assert max(spent) <= (1 if status.phase.is_final else 0)

    @invariant()
    def a_final_status_never_changes(self) -> None:
        status = self.world.job.status
        if self.final_status is not None:
            assert status == self.final_status
        elif status.phase.is_final:
            self.final_status = status

    @invariant()
    def a_success_was_proven(self) -> None:
        if self.world.job.status.phase is Phase.SUCCEEDED:
            assert self.world.job.status.attempts.history[0].reason is Reason.SUCCEEDED

    def teardown(self) -> None:
        """Left to itself, with every attempt dying, it comes to an end."""
        if not hasattr(self, "world"):
            return
        if self.world.job.spec.run_policy.suspend:
            self.toggle_suspend()
        for _ in range(60):
            self.settled_pass()
            self.budgets_are_respected()
            for number in self.world.live():
                self.world.attempts[number] = [None] * self.world.job.spec.compute.nodes
            self.now += timedelta(seconds=300)
        assert self.world.job.status.phase.is_final
        assert not self.world.live()


LifeOfAJob.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLifeOfAJob = LifeOfAJob.TestCase
