"""The operator as a whole: watches and lists fill the cache, the queue reconciles, a heartbeat asks for progress.

Crash-only: what can't be mended where it happens ends `run`, and `__main__` begins anew with nothing remembered.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from kubernetes.aio.client import ApiException

from sft_operator.kubernetes import definition
from sft_operator.kubernetes.api import PYTORCH_JOBS_API, ClusterApi, Listing, Object, connect, is_in_cluster
from sft_operator.kubernetes.backend import PyTorchJobBackend
from sft_operator.kubernetes.cache import Cache, attempt_of
from sft_operator.kubernetes.health import Health, serve_health
from sft_operator.kubernetes.lease import hold_lease
from sft_operator.kubernetes.mounts import path_of
from sft_operator.kubernetes.namespaces import left_out, open_namespaces
from sft_operator.kubernetes.observe import own_pods, own_pytorch_jobs, rank_of
from sft_operator.kubernetes.progress import TIMEOUT_SECONDS, ProgressPoller
from sft_operator.kubernetes.pytorch_job import TrainerDefaults
from sft_operator.kubernetes.queue import WorkQueue
from sft_operator.kubernetes.store import ObjectStore
from sft_operator.kubernetes.turns import Turns
from sft_operator.kubernetes.watch import watch
from sft_operator.lifecycle.backend import JobKey
from sft_operator.lifecycle.reconcile import reconcile
from sftjob import names
from sftjob.base import utc_now
from sftjob.failure import Obstacle
from sftjob.job import ObjectMeta
from sftjob.status import AttemptKind, Phase

log = logging.getLogger(__name__)

RELIST_SECONDS = 180
RELIST_AGAIN_SECONDS = 15
HEARTBEAT_SECONDS = 5
DISCOVERY_SECONDS = 10
REMINDER_SECONDS = 3
REMINDED_AT_ONCE = 60
"""Of the jobs that wait: up to 60 are looked at every 3 s, a thousand every 50 s."""
FIRST_REMINDER = 3
"""In rounds: 9 to 12 s after a job began to wait, whoever else does. What is stuck is told within 15 s."""
AT_ONCE = 64
"""Passes: they mostly wait for the API server, which bounds them itself."""


class StartAnew(Exception):
    """The cluster offers, or allows, something else than when the watches were set up."""


@dataclass(frozen=True)
class Options:
    defaults: TrainerDefaults
    namespaces: tuple[str, ...]
    """Those to work in; none for all."""
    lease_namespace: str
    serve_address: str | None


async def run(options: Options, stop: asyncio.Event) -> None:
    """Returns only by an exception; a signal sets `stop`."""
    async with await connect() as client, _pod_session() as session:
        api = ClusterApi(client, namespaces=options.namespaces)
        operator = Operator(api, ProgressPoller(api, session), options)
        # Served while the tasks run: the group waits for them when its block ends.
        async with operator.served(), asyncio.TaskGroup() as tasks:
            await operator.wait_for_definition()
            await operator.wait_for_namespaces()
            held = asyncio.Event()
            tasks.create_task(hold_lease(client, namespace=options.lease_namespace, held=held))
            pytorch_jobs = await api.has_resource(PYTORCH_JOBS_API, "pytorchjobs")
            if not pytorch_jobs:
                tasks.create_task(operator.wait_for_pytorch_jobs())
            await operator.relist(pytorch_jobs=pytorch_jobs)
            tasks.create_task(operator.relist_for_ever(pytorch_jobs=pytorch_jobs))
            tasks.create_task(
                watch(
                    operator.cache,
                    operator.queue,
                    namespaces=api.namespaces,
                    pytorch_jobs=pytorch_jobs,
                    stop=stop,
                )
            )
            log.info("waiting for the lease %s", options.lease_namespace)
            await held.wait()
            operator.health.leads = True
            log.info("at work")
            tasks.create_task(operator.heartbeat())
            tasks.create_task(operator.remind())
            tasks.create_task(operator.queue.run(operator.reconcile, at_once=AT_ONCE))


class Operator:
    def __init__(self, api: ClusterApi, poller: ProgressPoller, options: Options) -> None:
        self._api = api
        self._options = options
        self._poller = poller
        self.cache = Cache()
        self.queue = WorkQueue()
        self.health = Health(self.cache, self.queue, poller)
        self._store = ObjectStore(api, self.cache)
        self._backend = PyTorchJobBackend(api, self.cache, poller, defaults=options.defaults)

    async def reconcile(self, key: JobKey) -> float | None:
        return await reconcile(key, backend=self._backend, store=self._store, path_of=path_of, clock=utc_now)

    async def relist(self, *, pytorch_jobs: bool) -> None:
        schema = await self._api.job_schema()
        if schema is not None and (refusal := definition.refusal(schema)) is not None:
            raise StartAnew(refusal)
        if await open_namespaces(self._api, self._options.namespaces) != self._api.namespaces:
            raise StartAnew("a namespace, or the operator's Role in it, has gone or come")
        found = self._api.list_pytorch_jobs() if pytorch_jobs else _nothing()
        jobs, pods = self._api.list_jobs(), self._api.list_pods()
        await self.cache.relist(jobs=jobs, pytorch_jobs=found, pods=pods, on_change=self.queue.add)
        self.health.listed()

    async def relist_for_ever(self, *, pytorch_jobs: bool) -> None:
        """What a watch missed is found here; an API server that doesn't answer is asked again."""
        pause: float = RELIST_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await self.relist(pytorch_jobs=pytorch_jobs)
            except (ApiException, aiohttp.ClientError, TimeoutError, ValueError) as error:
                log.warning("the API server gives no whole list: %r", error)
                pause = RELIST_AGAIN_SECONDS * random.uniform(1, 1.5)
            else:
                pause = RELIST_SECONDS

    async def wait_for_definition(self) -> None:
        """Of SFTJobs, one that keeps what is written: what it dropped would be done again and again."""
        while (lack := await self._lack_of_definition()) is not None:
            self.health.waits_for = lack
            log.warning(lack)
            await asyncio.sleep(DISCOVERY_SECONDS)

    async def wait_for_namespaces(self) -> None:
        """For the first of those that were named. The others are left out: what one team takes away stops no other."""
        named = self._options.namespaces
        while not (found := await open_namespaces(self._api, named)) and named:
            self.health.listed()
            self.health.waits_for = left_out(named)
            log.warning(left_out(named))
            await asyncio.sleep(DISCOVERY_SECONDS)
        self._api.namespaces = found
        self.health.left_out = tuple(name for name in named if name not in found)
        if self.health.left_out:
            log.warning(left_out(self.health.left_out))
        self.health.waits_for = "its lease"

    async def _lack_of_definition(self) -> str | None:
        try:
            schema = await self._api.job_schema()
        except (ApiException, aiohttp.ClientError, TimeoutError, ValueError) as error:
            return f"the API server does not say what it has: {error!r}"
        self.health.listed()
        if schema is None:
            return f"this cluster has no SFTJobs yet: {definition.RENEW}"
        return definition.refusal(schema)

    async def wait_for_pytorch_jobs(self) -> None:
        log.warning("this cluster has no PyTorchJobs yet; jobs wait until Kubeflow's training-operator is installed")
        while not await self._has_resource(PYTORCH_JOBS_API, "pytorchjobs"):
            await asyncio.sleep(DISCOVERY_SECONDS)
        raise StartAnew("PyTorchJobs have been installed")

    async def _has_resource(self, group_version: str, plural: str) -> bool:
        """False also where the API server doesn't say."""
        try:
            found = await self._api.has_resource(group_version, plural)
        except (ApiException, aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.warning("the API server does not say what it has: %r", error)
            return False
        self.health.listed()
        return found

    async def heartbeat(self) -> None:
        """Running attempts tell their progress."""
        while True:
            phases = self.cache.unfinished_jobs()
            asked = [key for key, phase in phases.items() if phase not in (Phase.QUEUED, Phase.SUSPENDED)]
            launchers = {key: pod for key in asked if (pod := self._launcher(key)) is not None}
            self._poller.keep_silences_of({_job_uid(pod) for pod in launchers.values()})
            await asyncio.gather(*(self._ask(key, pod) for key, pod in launchers.items()))
            self._backend.keep_only(self.cache.job_uids())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _launcher(self, key: JobKey) -> Object | None:
        """The pod that can tell a job's progress."""
        job = self.cache.job(key)
        pods = self._pods(job) if job is not None else []
        return next((pod for pod in pods if rank_of(pod) == 0 and _answers(pod)), None)

    async def _ask(self, key: JobKey, launcher: Object) -> None:
        if await self._poller.ask(_job_uid(launcher), launcher):
            self.queue.add(key)

    async def remind(self) -> None:
        """What waits for anything that no watch may tell of is looked at again, in turn."""
        turns = Turns(at_once=REMINDED_AT_ONCE, first_after=FIRST_REMINDER)
        while True:
            phases = self.cache.unfinished_jobs()
            for key, _ in turns.next([one for one in phases.items() if one[1] != Phase.SUSPENDED]):
                job = self.cache.job(key)
                if job is None or not self._waits(job):
                    continue
                self.queue.remind(key)
                if _was_refused(job):
                    await self._backend.try_again(job["metadata"]["uid"], job["status"]["attempts"]["current"])
            await asyncio.sleep(REMINDER_SECONDS)

    def _waits(self, job: Object) -> bool:
        """For a pod, or for its start."""
        attempts = job.get("status", {}).get("attempts", {})
        nodes = job["spec"].get("compute", {}).get("nodes", 1)
        expected = 1 if attempts.get("kind") == AttemptKind.PREFLIGHT else nodes
        pods = self._pods(job)
        return len(pods) < expected or any(pod["status"].get("phase") == "Pending" for pod in pods)

    def _pods(self, job: Object) -> list[Object]:
        """Of the current attempt."""
        metadata = ObjectMeta.model_validate(job["metadata"], extra="ignore")
        current = job.get("status", {}).get("attempts", {}).get("current")
        owned = own_pytorch_jobs(metadata, self.cache.pytorch_jobs(metadata.uid))
        return [pod for pod in own_pods(metadata, self.cache.pods(metadata.uid), owned) if attempt_of(pod) == current]

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        if self._options.serve_address is None:
            yield
            return
        runner = await serve_health(self.health, self._options.serve_address)
        try:
            yield
        finally:
            await runner.cleanup()


def _was_refused(job: Object) -> bool:
    told = job.get("status", {}).get("conditions", [])
    return any(one["type"] == "Stalled" and one["reason"] == Obstacle.POD_REFUSED for one in told)


def _job_uid(pod: Object) -> str:
    uid: str = pod["metadata"]["labels"][names.JOB_UID_LABEL]
    return uid


def _answers(pod: Object) -> bool:
    return pod["status"].get("phase") == "Running" and "podIP" in pod["status"]


async def _nothing() -> AsyncIterator[Listing]:
    """Of a resource that the cluster doesn't have."""
    pages: tuple[Listing, ...] = ()
    for page in pages:
        yield page


@asynccontextmanager
async def _pod_session() -> AsyncIterator[aiohttp.ClientSession | None]:
    """Pods are reached directly from within the cluster only."""
    if not is_in_cluster():
        yield None
        return
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield session
