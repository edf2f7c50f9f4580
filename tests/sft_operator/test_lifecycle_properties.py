"""Random lives of a job, through `reconcile`: nodes start and die, attempts vanish, the operator crashes anywhere.

The world below is a backend and a store in memory; its checks stand where the operator acts on it.
"""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from jobs import NOW, a_job, an_outcome, seen, some_progress

from sft_operator.lifecycle.backend import Conflict, JobKey, NotNow
from sft_operator.lifecycle.decide import decide
from sft_operator.lifecycle.observation import NodeState, Observation, Trouble
from sft_operator.lifecycle.reconcile import reconcile
from sftjob.failure import NEVER_RETRIED, Obstacle, Reason
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
        self.suspended: set[int] = set()
        """By their queue."""
        self.never_let_go: set[int] = set()
        """Of these, those that were suspended from their birth on."""
        self.holds_all = False
        """Also what names no queue."""
        self.one_word_is_enough = False
        """Of a deletion."""
        self.refuses = False
        """Attempts that the operator creates."""
        self.keeps_pods = False
        """From starting: those of an attempt that was created."""
        self.was_refused = False
        self.held: set[int] = set()
        """Objects that stay: their node is lost."""
        self.preflights: set[int] = set()
        self.may_train = job.spec.run_policy.preflight == "never"
        """Or a pre-flight has prepared since the last retry by hand, or a checkpoint was saved."""
        self.has_saved = False
        self.progress: Progress | None = None
        self.silent_seconds = 0.0
        self.is_deleted = False
        self.now = NOW
        self.finished_at = NOW
        self.newest_created = 0
        self.seen_running: set[int] = set()
        self.calls_until_crash: int | None = None
        self.between_read_and_write: Callable[[], None] | None = None
        self.observed = Observation()

    # The store.

    async def read(self, key: JobKey) -> SFTJob | None:
        assert key == KEY
        return None if self.is_deleted else self.job

    async def write_status(self, job: SFTJob) -> SFTJob:
        self._may_crash()
        if job.metadata.resource_version != self.job.metadata.resource_version:
            raise Conflict
        assert job.spec == self.job.spec
        assert not self.is_deleted
        assert job.status != self.job.status, "a write that changes nothing"
        assert job.status.attempts.current >= self.job.status.attempts.current
        if job.status.phase.is_final and not self.job.status.phase.is_final:
            self.finished_at = self.now
            assert job.status.phase is Phase.FAILED or self.has_proven(job.status.attempts.current)
        told, tells = self.job.status.progress, job.status.progress
        if told is not None and tells is not None and told.attempt == tells.attempt:
            assert tells.step >= told.step, "a step back within an attempt"
        self.replace(job)
        if job.status.phase is Phase.RUNNING:
            self.seen_running.add(job.status.attempts.current)
        self._may_crash()
        return self.job

    async def confirm(self, job: SFTJob) -> None:
        if job.metadata.resource_version != self.job.metadata.resource_version:
            raise Conflict

    async def delete_job(self, job: SFTJob) -> None:
        self._may_crash()
        assert job.status == self.job.status
        assert job.status.phase.is_final, "the object is gone before its end"
        assert not self.live(), "the object is gone before its attempt"
        limit = self.job.spec.run_policy.ttl_seconds_after_finished
        assert limit is not None
        assert self.now - self.finished_at >= timedelta(seconds=limit), "the object is gone before its time"
        if job.metadata.resource_version != self.job.metadata.resource_version:
            raise Conflict
        self.is_deleted = True
        self._may_crash()

    def replace(self, job: SFTJob) -> None:
        version = str(int(self.job.metadata.resource_version) + 1)
        metadata = job.metadata.model_copy(update={"resource_version": version})
        self.job = job.model_copy(update={"metadata": metadata})

    # The backend.

    async def observe(self, job: SFTJob) -> Observation:
        assert job.metadata.uid == self.job.metadata.uid
        attempts = tuple(
            seen(
                number,
                *nodes,
                is_deleting=number in self.deleting,
                is_suspended=number in self.suspended,
                goes_by_itself=self.one_word_is_enough and number in self.deleting,
            )
            for number, nodes in sorted(self.attempts.items())
        )
        if self.between_read_and_write:
            self.between_read_and_write()
            self.between_read_and_write = None
        trouble = self.trouble()
        self.observed = Observation(attempts, self.progress, trouble=trouble, silent_seconds=self.silent_seconds)
        return self.observed

    def trouble(self) -> Trouble | None:
        """As a backend tells it: of the current attempt, as long as it has not started."""
        number = self.job.status.attempts.current
        if number not in self.attempts:
            is_refused = self.was_refused and self.job.status.phase is Phase.STARTING
            return Trouble(Obstacle.ATTEMPT_REFUSED, "an admission webhook") if is_refused else None
        waits = NodeState.PENDING in self.attempts[number] and number not in self.deleting
        return Trouble(Obstacle.IMAGE_PULL_FAILED, "no such image") if waits and self.keeps_pods else None

    async def create(self, job: SFTJob, plan: LaunchPlan) -> None:
        number, stored = plan.attempt, self.job.status.attempts
        assert job.metadata.resource_version == self.job.metadata.resource_version, (
            "acted on an object that has changed"
        )
        assert number == stored.current, "created without being announced"
        assert not stored.current_has_ended, "created after its end was recorded"
        assert number in self.attempts or number not in self.seen_running, "a lost attempt was created again"
        assert number >= self.newest_created, "a number went back"
        assert not [n for n in self.live() if n != number], "two attempts at once"
        assert self.job.status.phase in (Phase.QUEUED, Phase.STARTING, Phase.RUNNING)
        self._may_crash()
        self.was_refused = self.refuses
        if self.refuses:
            raise NotNow("refused")
        if number not in self.attempts and (job.spec.queue is not None or self.holds_all):
            self.suspended.add(number)
            self.never_let_go.add(number)
        if plan.prepare_only:
            assert job.spec.run_policy.preflight != "never"
            assert number in self.preflights or stored.saved_step is None
            self.preflights.add(number)
        else:
            assert number not in self.preflights, "a pre-flight became another attempt"
            assert self.may_train or self.has_saved, "accelerators are asked for before anything was looked at"
        nodes = self.attempts.setdefault(number, [NodeState.MISSING] * self.launchers(number))
        for rank, node in enumerate(nodes):
            if node is NodeState.MISSING:
                nodes[rank] = NodeState.PENDING
                if rank == 0:
                    self._may_crash()
        self.newest_created = number
        self._may_crash()

    async def delete(self, job: SFTJob, attempt: int) -> None:
        assert job.metadata.resource_version == self.job.metadata.resource_version, (
            "acted on an object that has changed"
        )
        self._may_crash()
        assert attempt not in self.never_let_go or not self.waits(attempt), "what waits in its queue is given up"
        assert attempt in self.live() or attempt != self.job.status.attempts.current, "its logs are gone"
        assert attempt not in self.deleting or not self.one_word_is_enough, "it is told what it knows"
        if attempt in self.live() or attempt in self.held:
            self.deleting.add(attempt)
        else:
            del self.attempts[attempt]
        self._may_crash()

    def has_proven(self, number: int) -> bool:
        """Each of its launchers ended with success, and the first names the final checkpoint."""
        outcomes = [node for node in self.attempts[number] if isinstance(node, Outcome)]
        are_all = len(outcomes) == len(self.attempts[number]) == self.job.spec.compute.nodes
        return are_all and {one.reason for one in outcomes} == {Reason.SUCCEEDED} and bool(outcomes[0].final_digest)

    def waits(self, number: int) -> bool:
        """Nothing has become of it since it was created, and nobody wants it to end."""
        is_unwanted = self.job.spec.run_policy.suspend or self.job.status.phase is Phase.SUSPENDING
        has_begun = any(node not in (NodeState.MISSING, NodeState.PENDING) for node in self.attempts[number])
        return not is_unwanted and not has_begun and number not in self.deleting

    def launchers(self, number: int) -> int:
        return 1 if number in self.preflights else self.job.spec.compute.nodes

    def end(self, number: int, rank: int, reason: Reason | None, **told: Any) -> None:
        """As launchers do: of what a pre-flight was to do it says Prepared, and no other attempt does."""
        if reason in (Reason.SUCCEEDED, Reason.PREPARED):
            reason = Reason.PREPARED if number in self.preflights else Reason.SUCCEEDED
        self.may_train |= reason is Reason.PREPARED
        self.has_saved |= told.get("saved_step") is not None
        self.attempts[number][rank] = reason and an_outcome(reason, attempt=number, node_rank=rank, **told)

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


class Stored:
    """The world's store: both it and the backend have a `delete`."""

    def __init__(self, world: World) -> None:
        self.read, self.confirm = world.read, world.confirm
        self.write_status, self.delete = world.write_status, world.delete_job


def _is_over(time: timedelta, limit: int | None) -> bool:
    return limit is not None and time >= timedelta(seconds=limit)


class LifeOfAJob(RuleBasedStateMachine):
    world: World
    final_status: Any = None
    retries_by_hand = 0

    @initialize(
        nodes=st.integers(1, 2),
        retries=st.sampled_from([0, 1, 9]),
        disruption_retries=st.sampled_from([0, 1, 9]),
        queue=st.sampled_from([None, "team-a"]),
        holds_all=st.booleans(),
        one_word_is_enough=st.booleans(),
        preflight=st.sampled_from(["auto", "always", "never"]),
        limits=st.fixed_dictionaries(
            {
                "startDeadlineSeconds": st.sampled_from([None, 10, 100]),
                "activeDeadlineSeconds": st.sampled_from([None, 1, 400]),
                "progressDeadlineSeconds": st.sampled_from([None, 60]),
            }
        ),
    )
    def begin(
        self,
        nodes: int,
        retries: int,
        disruption_retries: int,
        queue: str | None,
        holds_all: bool,
        one_word_is_enough: bool,
        preflight: str,
        limits: dict[str, int | None],
    ) -> None:
        given = {name: limit for name, limit in limits.items() if limit is not None}
        policy = {"retries": retries, "disruptionRetries": disruption_retries, "preflight": preflight} | given
        self.world = World(a_job(nodes=nodes, queue=queue, gpus=2, **policy))
        self.world.holds_all = holds_all
        self.world.one_word_is_enough = one_word_is_enough

    def one_pass(self) -> float | None:
        try:
            return drive(
                reconcile(
                    KEY,
                    backend=self.world,
                    store=Stored(self.world),
                    path_of=lambda uri: f"/mnt/{uri}",
                    clock=lambda: self.world.now,
                )
            )
        except (Conflict, NotNow):
            return 1.0

    @rule()
    def reconcile(self) -> None:
        self.settled_pass()

    def settled_pass(self) -> None:
        overdue = self.overdue_attempt()
        due = self.one_pass()
        status = self.world.job.status
        if not self.world.is_deleted and not status.phase.is_final:
            trouble = None if status.phase is Phase.SUSPENDED else self.world.observed.trouble
            stalled = next((c for c in status.conditions if c.type == "Stalled" and c.status == "True"), None)
            assert (stalled and stalled.reason) == (trouble and trouble.reason), "trouble that is not told, or is over"
        if overdue is not None:
            assert overdue in self.world.deleting, "its time is over and nobody ends it"
        waits_for = {
            "nothing any more": self.world.is_deleted,
            "its end": status.phase.is_final,
            "a suspension": status.phase is Phase.SUSPENDED and self.world.job.spec.run_policy.suspend,
            "a live attempt": bool(self.world.live()),
            "a time": due is not None,
        }
        assert any(waits_for.values()), "it waits for nothing"
        if due is None and not self.world.is_deleted:
            # A report is told again every few seconds.
            silent = replace(self.world.observed, progress=None)
            again = decide(self.world.job, silent, now=self.world.now)
            assert again.status == status, "only its own write would wake it"

    def overdue_attempt(self) -> int | None:
        """Told from the world: the current attempt, if it lives past one of its deadlines."""
        status, policy = self.world.job.status, self.world.job.spec.run_policy
        attempts, number = status.attempts, status.attempts.current
        if self.world.is_deleted or attempts.current_has_ended or number not in self.world.live():
            return None
        nodes, age = self.world.attempts[number], timedelta()
        if attempts.started_at is not None:
            age = self.world.now - attempts.started_at
        ran = timedelta(seconds=attempts.running_seconds)
        if attempts.running_since is not None:
            ran += self.world.now - attempts.running_since
        waits = NodeState.PENDING in nodes or NodeState.MISSING in nodes
        is_silent = all(node is NodeState.RUNNING for node in nodes)
        # Its time to start begins when it is seen to have been let go.
        is_queued = number in self.world.suspended or status.phase is Phase.QUEUED
        over = [
            waits and not is_queued and _is_over(age, policy.start_deadline_seconds),
            attempts.running_since is not None and _is_over(ran, policy.active_deadline_seconds),
            is_silent and _is_over(timedelta(seconds=self.world.silent_seconds), policy.progress_deadline_seconds),
        ]
        return number if any(over) else None

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
        self.edit_policy(suspend=not self.world.job.spec.run_policy.suspend)

    def edit_policy(self, **update: Any) -> None:
        job = self.world.job
        policy = job.spec.run_policy.model_copy(update=update)
        self.world.replace(job.model_copy(update={"spec": job.spec.model_copy(update={"run_policy": policy})}))

    @rule(seconds=st.sampled_from([1, 10, 300]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.world.live())
    @rule(seconds=st.sampled_from([0, 59, 60, 9999]))
    def nothing_new_is_heard(self, seconds: int) -> None:
        self.world.silent_seconds = seconds
        self.settled_pass()
        self.world.silent_seconds = 0

    @rule(
        limits=st.dictionaries(
            st.sampled_from(
                [
                    "start_deadline_seconds",
                    "active_deadline_seconds",
                    "progress_deadline_seconds",
                    "ttl_seconds_after_finished",
                ]
            ),
            st.sampled_from([None, 60]),
        )
    )
    def the_user_edits_the_deadlines(self, limits: dict[str, int | None]) -> None:
        self.edit_policy(**limits)

    @rule()
    def the_user_asks_for_a_retry(self) -> None:
        self.retry()

    def retry(self) -> None:
        """A new value: it counts where the job has failed."""
        self.retries_by_hand += 1
        job = self.world.job
        annotations = {"sftjob.dev/retry": str(self.retries_by_hand)}
        self.world.replace(
            job.model_copy(update={"metadata": job.metadata.model_copy(update={"annotations": annotations})})
        )
        if job.status.phase is Phase.FAILED and not self.world.is_deleted:
            self.final_status = None
            self.world.may_train = job.spec.run_policy.preflight == "never"
            self.settled_pass()
            if not self.world.is_deleted:
                assert self.world.job.status.phase is not Phase.FAILED, "it was not tried again"

    @rule()
    def the_cluster_refuses_attempts_or_takes_them_again(self) -> None:
        self.world.refuses = not self.world.refuses

    @rule()
    def pods_are_kept_from_starting_or_are_not_any_more(self) -> None:
        self.world.keeps_pods = not self.world.keeps_pods

    @precondition(lambda self: self.world.live() and not self.world.keeps_pods)
    @rule(data=st.data())
    def a_node_starts(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.world.live()))
        nodes = self.world.attempts[number]
        for rank, node in enumerate(nodes):
            if node is NodeState.PENDING and number not in self.world.suspended:
                nodes[rank] = NodeState.RUNNING
                break

    @precondition(lambda self: self.world.suspended & {*self.world.live()})
    @rule(data=st.data())
    def a_queue_lets_an_attempt_run(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.suspended & {*self.world.live()})))
        self.world.suspended.discard(number)
        self.world.never_let_go.discard(number)

    @precondition(lambda self: self.world.live())
    @rule(data=st.data(), was_seen=st.booleans())
    def somebody_suspends_an_attempt(self, data: st.DataObject, was_seen: bool) -> None:
        """Its pods are gone, and perhaps nobody saw how they ended."""
        number = data.draw(st.sampled_from(self.world.live()))
        self.world.suspended.add(number)
        end = an_outcome(Reason.PREEMPTED, attempt=number) if was_seen else NodeState.PENDING
        nodes = self.world.attempts[number]
        nodes[:] = [end if node is NodeState.RUNNING else node for node in nodes]

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
        self.world.end(number, rank, reason, saved_step=saved, final_digest=digest)

    @rule(
        reason=st.sampled_from([None, Reason.RANK_KILLED, Reason.PREEMPTED, Reason.PREPARED]),
        saved=st.none() | st.integers(1, 50),
    )
    def an_attempt_lives_and_dies(self, reason: Reason | None, saved: int | None) -> None:
        self.settled_pass()
        for number in self.world.live():
            for rank in range(self.world.launchers(number)):
                self.world.end(number, rank, reason, saved_step=saved)
        self.settled_pass()
        self.world.now += timedelta(seconds=300)

    @precondition(lambda self: self.world.live())
    @rule(data=st.data())
    def the_nodes_of_an_attempt_are_lost(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.world.live()))
        self.world.attempts[number] = [None] * self.world.launchers(number)
        self.world.held.add(number)

    @precondition(lambda self: self.world.attempts)
    @rule(data=st.data())
    def an_attempt_vanishes(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.attempts)))
        del self.world.attempts[number]
        self.world.deleting.discard(number)
        self.world.held.discard(number)

    @precondition(lambda self: self.world.job.status.attempts.current > 1)
    @rule(data=st.data())
    def an_older_attempt_is_seen_alive(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, self.world.job.status.attempts.current - 1))
        self.world.attempts[number] = [NodeState.RUNNING] * self.world.launchers(number)
        self.world.never_let_go.discard(number)

    @rule(attempt=st.integers(1, 6), step=st.integers(0, 50), saved=st.none() | st.integers(1, 50))
    def a_report_arrives(self, attempt: int, step: int, saved: int | None) -> None:
        seconds = (self.world.now - NOW).total_seconds()
        self.world.progress = some_progress(attempt=attempt, step=step, saved_step=saved, seconds=seconds)
        self.world.has_saved |= saved is not None

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
    def numbers_rise_and_history_is_kept(self) -> None:
        attempts = self.world.job.status.attempts
        ended = range(1, attempts.current + attempts.current_has_ended)
        assert [record.number for record in attempts.history] == list(reversed(ended))[:10]

    @invariant()
    def no_more_time_was_used_than_has_passed(self) -> None:
        status = self.world.job.status
        passed = (self.world.now - NOW).total_seconds()
        assert status.attempts.running_seconds <= passed
        if status.usage is not None:
            gpus = 2 * self.world.job.spec.compute.nodes
            assert 0 <= status.usage.lost_gpu_seconds <= status.usage.gpu_seconds <= gpus * passed

    def teardown(self) -> None:
        """Left to itself, with every attempt dying, it comes to an end."""
        if not hasattr(self, "world"):
            return
        self.world.refuses = False
        if self.world.job.spec.run_policy.suspend:
            self.toggle_suspend()
        for _ in range(60):
            self.settled_pass()
            self.budgets_are_respected()
            for number in self.world.live():
                self.world.attempts[number] = [None] * self.world.launchers(number)
            self.world.now += timedelta(seconds=300)
        assert self.world.job.status.phase.is_final
        assert self.world.is_deleted or not self.world.live()


class OtherLives(LifeOfAJob):
    """Others at each run: at full size only, for what they find need not be the fault of the newest change."""


LifeOfAJob.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestLifeOfAJob = LifeOfAJob.TestCase
OtherLives.TestCase.settings = settings(max_examples=1000, stateful_step_count=40, derandomize=False)
TestOtherLives = pytest.mark.full(OtherLives.TestCase)
