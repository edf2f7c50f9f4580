"""A work queue of keys: what is asked for many times is done once, one pass of a key at a time, bounded in all.

A pass that fails is tried again after a time that doubles; a key that is asked for while it waits is done at once.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable

from aiohttp import ClientError
from kubernetes.aio.client import ApiException

from sft_operator.lifecycle.backend import JobKey, NotNow

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0

EXPECTED = (NotNow, ApiException, ClientError, TimeoutError)
"""What the cluster or the network says no with; anything else is a fault of ours."""

Work = Callable[[JobKey], Awaitable[float | None]]
"""One pass. Returns seconds until the next one is due, None for not before something changes."""


class WorkQueue:
    def __init__(self) -> None:
        self._due: dict[JobKey, float] = {}
        """Monotonic time from which a key is to be done."""
        self._working: set[JobKey] = set()
        self._failures: dict[JobKey, int] = {}
        self._changed = asyncio.Event()
        self.passes = 0
        self.failed_passes = 0

    def add(self, key: JobKey, *, after: float = 0.0) -> None:
        due = time.monotonic() + after
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._changed.set()

    def remind(self, key: JobKey) -> None:
        """A key that waits for its next try is left to wait; one whose time is far off may have something new."""
        if key not in self._failures:
            self.add(key)

    def oldest_age(self) -> float:
        """Seconds that the longest overdue key has waited; 0 where none waits."""
        return max((time.monotonic() - due for due in self._due.values()), default=0.0)

    async def run(self, work: Work, *, at_once: int) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                now = time.monotonic()
                for key, due in sorted(self._due.items(), key=lambda item: item[1]):
                    if due > now or len(self._working) >= at_once:
                        break
                    if key not in self._working:
                        del self._due[key]
                        self._working.add(key)
                        tasks.create_task(self._pass(key, work))
                waiting = [due for key, due in self._due.items() if key not in self._working]
                full = len(self._working) >= at_once
                timeout = None if full or not waiting else max(0.0, min(waiting) - now)
                # Not `wait_for`: in Python 3.11 it forgets a cancellation that comes together with what it waits for.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await self._changed.wait()

    async def _pass(self, key: JobKey, work: Work) -> None:
        self.passes += 1
        try:
            due = await work(key)
        except Exception as error:
            # Whatever it was, others go on, and this key is tried again.
            self.failed_passes += 1
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            due = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 10))
            due *= 1 + random.random() / 10
            told = "%s/%s: %s; again in %.0f s"
            log.warning(told, *key, error, due, exc_info=not isinstance(error, EXPECTED))
        else:
            self._failures.pop(key, None)
        finally:
            self._working.discard(key)
            self._changed.set()
        if due is not None:
            self.add(key, after=due)
