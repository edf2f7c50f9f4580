"""Attempts as PyTorchJobs: observes from the cache, acts on what lives. Called by `reconcile`.

That the job itself is the newest, the store has said.
"""

import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from aiohttp import ClientError
from kubernetes.aio.client import ApiException

from sft_operator.kubernetes import observe, trouble
from sft_operator.kubernetes.api import ClusterApi, Object, message_of
from sft_operator.kubernetes.cache import Cache, attempt_of
from sft_operator.kubernetes.grace import Graces
from sft_operator.kubernetes.progress import ProgressPoller
from sft_operator.kubernetes.pytorch_job import TrainerDefaults, attempt_labels, is_ours, pytorch_job
from sft_operator.kubernetes.queued import QueueNews
from sft_operator.kubernetes.warnings import Warnings
from sft_operator.lifecycle.backend import JobKey, NotNow
from sft_operator.lifecycle.observation import AttemptObservation, NodeState, Observation, Trouble
from sft_operator.lifecycle.silence import Silence
from sftjob import names
from sftjob.base import utc_now
from sftjob.job import SFTJob
from sftjob.plan import LaunchPlan
from sftjob.status import Phase

log = logging.getLogger(__name__)

STUCK_AFTER = timedelta(seconds=8)
"""An attempt that doesn't run by then is asked after in events."""
EVENTS_AGAIN_SECONDS = 8.0
TRIED_AGAIN_SECONDS = 30.0
"""Between two requests to create pods that were refused: training-operator's own pauses double up to 1,000 s."""


@dataclass(frozen=True)
class _Told:
    """By events, of an attempt that waits."""

    trouble: Trouble | None
    at: float
    lacks_pods: bool
    """Once they are there, what refused them is no trouble any more."""


class PyTorchJobBackend:
    def __init__(self, api: ClusterApi, cache: Cache, poller: ProgressPoller, *, defaults: TrainerDefaults) -> None:
        self._api = api
        self._cache = cache
        self._poller = poller
        self._defaults = defaults
        self._refused: dict[str, Trouble] = {}
        """Of an attempt that could not be created, by the job's uid."""
        self._by_events: dict[str, _Told] = {}
        self._tried_again: dict[str, float] = {}
        self._queue_news = QueueNews(api)
        self._warnings = Warnings(api)
        self._silence = Silence()
        self._graces = Graces()

    async def observe(self, job: SFTJob) -> Observation:
        uid, now, recorded = job.metadata.uid, utc_now(), job.status.attempts
        self._cache.forget_gone_pods(uid, before_attempt=recorded.current + recorded.current_has_ended)
        attempts = self._attempts(job)
        if observe.seems_lost(job, attempts) or observe.seems_taken_back(job, attempts):
            await self._look_for_children(job)
            attempts = self._attempts(job)
        current = next((attempt for attempt in attempts if attempt.number == recorded.current), None)
        word = await self._word_of_queue(job, current)
        trouble_now = await self._trouble(job, current, word, now)
        progress, heard_at = self._poller.last(uid), self._poller.heard_at(uid)
        silent = self._silence.seconds(uid, current, progress, heard_at=heard_at, now=time.monotonic())
        return Observation(
            attempts,
            progress,
            trouble_now,
            silent,
            queue_message=word or "",
            default_image=self._defaults.image,
        )

    async def create(self, job: SFTJob, plan: LaunchPlan) -> None:
        """Raises NotNow where the attempt must wait, or its PyTorchJob can't be made."""
        key, uid = JobKey(job.metadata.namespace, job.metadata.name), job.metadata.uid
        await self._refuse_beside_others(job, plan.attempt)
        body = pytorch_job(job, plan, self._defaults)
        name = body["metadata"]["name"]
        try:
            created = await self._api.create_pytorch_job(body)
        except ApiException as error:
            if error.status == 409:
                created = await self._found_instead(key, name, uid)
            elif error.status == 404:
                raise self._refuse(uid, trouble.pytorch_jobs_missing()) from None
            elif error.status in (400, 403, 422) or "failed calling webhook" in message_of(error):
                raise self._refuse(uid, trouble.refused(message_of(error))) from None
            else:
                raise
        self._refused.pop(uid, None)
        await self._take_note(job, created, plan.attempt)

    async def delete(self, job: SFTJob, attempt: int) -> None:
        """Nothing where it is being deleted already, or only its pods are left: those go with it."""
        uid = job.metadata.uid
        known = next((found for found in self._cache.pytorch_jobs(uid) if attempt_of(found) == attempt), None)
        if known is None:
            return
        found = await self._api.get_pytorch_job(job.metadata.namespace, known["metadata"]["name"])
        if found is None or found["metadata"]["uid"] != known["metadata"]["uid"]:
            self._cache.drop_pytorch_job(known)
        elif is_ours(found, uid=uid) and "deletionTimestamp" not in found["metadata"]:
            await self._api.delete_pytorch_job(found)

    async def try_again(self, uid: str, attempt: int) -> None:
        """Of an attempt whose pods were refused: a change of its PyTorchJob has the controller look at it at once."""
        known = next((found for found in self._cache.pytorch_jobs(uid) if attempt_of(found) == attempt), None)
        now = time.monotonic()
        if known is None or now - self._tried_again.get(uid, 0.0) < TRIED_AGAIN_SECONDS:
            return
        self._tried_again[uid] = now
        try:
            marks = {"annotations": {names.TRIED_AGAIN_ANNOTATION: utc_now().isoformat()}}
            await self._api.mark_pytorch_job(known, marks)
        except (ApiException, ClientError, TimeoutError) as error:
            log.warning("%s can't be marked: %s", known["metadata"]["name"], error)

    def keep_only(self, uids: set[str]) -> None:
        """The jobs that exist: what is known of others is forgotten."""
        for known in (self._refused, self._by_events, self._tried_again):
            for uid in known.keys() - uids:
                del known[uid]
        self._poller.keep_only(uids)
        self._silence.keep_only(uids)
        self._graces.keep_only(uids)
        self._warnings.forget_unused()

    def _attempts(self, job: SFTJob) -> tuple[AttemptObservation, ...]:
        uid = job.metadata.uid
        pods = self._cache.pods(uid)
        return observe.attempts(
            job,
            pytorch_jobs=self._cache.pytorch_jobs(uid),
            pods=pods,
            gone_pods=self._cache.gone_pods(uid),
            held_pods=self._graces.over(uid, pods, now=time.monotonic()),
        )

    async def _look_for_children(self, job: SFTJob) -> None:
        """Each kind has a watch of its own: the job may be newer here than what it owns."""
        metadata = job.metadata
        name = names.attempt_name(metadata.name, metadata.uid, job.status.attempts.current)
        found = await self._api.get_pytorch_job(metadata.namespace, name)
        if found is not None and is_ours(found, uid=metadata.uid):
            await self._take_note(job, found, job.status.attempts.current)
        for pod in await self._api.list_pods_of(JobKey(metadata.namespace, metadata.name), metadata.uid):
            self._cache.put_pod(pod)

    async def _take_note(self, job: SFTJob, found: Object, attempt: int) -> None:
        """Labels that somebody took away are put back: without them no watch tells of it."""
        labels = attempt_labels(job.metadata, attempt)
        if not labels.items() <= found["metadata"].get("labels", {}).items():
            found = await self._api.mark_pytorch_job(found, {"labels": labels})
        self._cache.put_pytorch_job(found)

    async def _refuse_beside_others(self, job: SFTJob, attempt: int) -> None:
        """No pod of another attempt may live; the cache may be old. Before the first one there was none."""
        if attempt == 1:
            return
        pods = await self._api.list_pods_of(JobKey(job.metadata.namespace, job.metadata.name), job.metadata.uid)
        held = self._graces.over(job.metadata.uid, pods, now=time.monotonic())
        others = observe.attempts(job, pytorch_jobs=[], pods=pods, gone_pods=[], held_pods=held)
        alive = [other.number for other in others if other.number != attempt and other.is_live]
        if alive:
            raise NotNow(f"attempt {attempt} waits for the pods of attempt {alive[0]} to end")

    async def _found_instead(self, key: JobKey, name: str, uid: str) -> Object:
        """An earlier POST whose answer was lost, or somebody else's object. One of the same job and attempt, which are
        in its name, was made of the same plan, but for what of it may be edited."""
        found = await self._api.get_pytorch_job(key.namespace, name)
        if found is None:
            raise NotNow(f"{name} was there and is gone")
        if not is_ours(found, uid=uid):
            raise self._refuse(uid, trouble.name_conflict(name))
        if "deletionTimestamp" in found["metadata"]:
            raise NotNow(f"{name} is being deleted")
        return found

    def _refuse(self, uid: str, reason: Trouble) -> NotNow:
        self._refused[uid] = reason
        return NotNow(f"{reason.reason}: {reason.message}")

    async def _word_of_queue(self, job: SFTJob, current: AttemptObservation | None) -> str | None:
        """None where nobody keeps the attempt in a queue."""
        if current is None or not current.is_suspended:
            return None
        waits = job.status.phase is Phase.QUEUED or job.status.attempts.ending is not None
        return await self._queue_news.of(self._pytorch_job(job.metadata.uid, current), is_news=not waits)

    def _pytorch_job(self, uid: str, attempt: AttemptObservation) -> Object:
        """Of an attempt that was seen to be suspended: that is told by its PyTorchJob."""
        return next(found for found in self._cache.pytorch_jobs(uid) if attempt_of(found) == attempt.number)

    async def _trouble(
        self,
        job: SFTJob,
        current: AttemptObservation | None,
        word_of_queue: str | None,
        now: datetime,
    ) -> Trouble | None:
        uid = job.metadata.uid
        if current is None:
            return self._refused.get(uid) if job.status.phase is Phase.STARTING else None
        self._refused.pop(uid, None)
        if current.is_deleting or not any(node.state is NodeState.PENDING for node in current.nodes):
            self._by_events.pop(uid, None)
            return None
        mine = [pod for pod in self._cache.pods(uid) if attempt_of(pod) == current.number]
        found = trouble.of_pods(job, mine, self._defaults)
        if found is not None:
            return found
        began = job.status.attempts.started_at
        if began is None or now - began < STUCK_AFTER:
            return None
        if current.is_suspended:
            return trouble.of_queue(self._pytorch_job(uid, current), word_of_queue)
        told, lacks_pods = self._by_events.get(uid), any(node.pod is None for node in current.nodes)
        if told is None or told.lacks_pods != lacks_pods or time.monotonic() - told.at >= EVENTS_AGAIN_SECONDS:
            about_jobs = [found for found in self._cache.pytorch_jobs(uid) if attempt_of(found) == current.number]
            try:
                events = [event for found in [*about_jobs, *mine] for event in await self._warnings.about(found)]
            except (ApiException, ClientError, TimeoutError) as error:
                log.warning("events can't be read: %s", error)
                return told.trouble if told else None
            of_events = trouble.of_events(job, events, pods=mine, lacks_pods=lacks_pods, now=now)
            found = of_events or trouble.of_gates(mine) or trouble.of_controller(about_jobs, mine)
            told = self._by_events[uid] = _Told(found, time.monotonic(), lacks_pods)
        return told.trouble
