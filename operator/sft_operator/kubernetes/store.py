"""The object of a job: read from the cache, its status written with a version, and its story told in events."""

import asyncio
import logging

from aiohttp import ClientError
from kubernetes.aio.client import ApiException
from pydantic import ValidationError

from sft_operator.kubernetes.api import ClusterApi, Object, message_of
from sft_operator.kubernetes.cache import Cache
from sft_operator.kubernetes.packed import version_of
from sft_operator.kubernetes.story import story
from sft_operator.lifecycle.backend import Conflict, JobKey, NotNow
from sft_operator.lifecycle.conditions import refused
from sftjob.base import utc_now
from sftjob.job import SFTJob
from sftjob.problems import problems_of
from sftjob.status import SFTJobStatus

log = logging.getLogger(__name__)

EVENTS_AT_ONCE = 8
"""So that they don't stand in the way of what is done."""


class ObjectStore:
    def __init__(self, api: ClusterApi, cache: Cache) -> None:
        self._api = api
        self._cache = cache
        self._telling: set[asyncio.Task[None]] = set()
        self._event_slots = asyncio.Semaphore(EVENTS_AT_ONCE)

    async def read(self, key: JobKey) -> SFTJob | None:
        """None also where it is being deleted: all that is left to do then is the garbage collector's."""
        found = self._cache.job(key)
        if found is None or "deletionTimestamp" in found["metadata"]:
            return None
        try:
            return SFTJob.model_validate(found, extra="ignore")
        except ValidationError as error:
            if any(details["loc"][0] == "status" for details in error.errors()):
                raise NotNow(f"its status was written by another version of the operator: {error}") from None
            # Stored under another version's rules. What it was is told on the object, and nothing is done.
            await self._write_refusal(key, found, error)
            return None

    async def _write_refusal(self, key: JobKey, found: Object, error: ValidationError) -> None:
        message = "; ".join(str(problem) for problem in problems_of(error, SFTJob))
        metadata, before = found["metadata"], SFTJobStatus.model_validate(found.get("status") or {})
        after = refused(before, message=message, generation=metadata["generation"], now=utc_now())
        if after != before:
            await self._write(key, metadata["resourceVersion"], after.to_json_dict())

    async def write_status(self, job: SFTJob) -> SFTJob:
        key = JobKey(job.metadata.namespace, job.metadata.name)
        before = self._cache.job(key)
        assert before is not None
        if before["metadata"]["resourceVersion"] != job.metadata.resource_version:
            raise Conflict(f"{key.name}: the object has changed")
        written = await self._write(key, job.metadata.resource_version, job.status.to_json_dict())
        events = story(job, before=SFTJobStatus.model_validate(before.get("status") or {}, extra="ignore"))
        if events:
            telling = asyncio.create_task(self._tell(events))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
        return SFTJob.model_validate(written, extra="ignore")

    async def confirm(self, job: SFTJob) -> None:
        key = JobKey(job.metadata.namespace, job.metadata.name)
        found = await self._refresh(key)
        if found is None or "deletionTimestamp" in found["metadata"]:
            raise Conflict(f"{key.name}: the object is gone")
        if found["metadata"]["resourceVersion"] != job.metadata.resource_version:
            raise Conflict(f"{key.name}: the object has changed")

    async def delete(self, job: SFTJob) -> None:
        key, metadata = JobKey(job.metadata.namespace, job.metadata.name), job.metadata
        try:
            await self._api.delete_job(key, uid=metadata.uid, resource_version=metadata.resource_version)
        except ApiException as error:
            if error.status not in (404, 409):
                raise
            await self._refresh(key)
            raise Conflict(message_of(error)) from None

    async def _write(self, key: JobKey, version: str, status: Object) -> Object:
        try:
            written = await self._api.write_status(key, resource_version=version, status=status)
        except ApiException as error:
            if error.status not in (404, 409):
                raise
            await self._refresh(key)
            raise Conflict(message_of(error)) from None
        self._cache.put_job(written)
        return written

    async def _refresh(self, key: JobKey) -> Object | None:
        """What the watch will tell in a moment: without it the next pass would decide on the old object again."""
        known = self._cache.job(key)
        found = await self._api.get_job(key)
        if found is not None:
            self._cache.put_job(found, when_asked=version_of(known) if known else None)
        elif known is not None:
            self._cache.drop_job(known)
        return found

    async def _tell(self, events: list[Object]) -> None:
        """In their order, beside the passes, which don't wait for it. Best effort: one that is lost changes nothing."""
        async with self._event_slots:
            for event in events:
                try:
                    await self._api.create_event(event)
                except (ApiException, ClientError, TimeoutError) as error:
                    if not (isinstance(error, ApiException) and error.status == 409):
                        log.warning("an event could not be written: %s", error)
