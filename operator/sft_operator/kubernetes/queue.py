"""A work queue of keys: what is asked for many times is done once, one pass of a key at a time, bounded in all.

A pass that fails is tried again after a time that doubles, but at once after a first Conflict; a key that is asked for
while it waits is done at once.
"""

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from itertools import islice

from aiohttp import ClientError
from kubernetes.aio.client import ApiException

from sft_operator.lifecycle.backend import Conflict, JobKey, NotNow

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0

EXPECTED = (NotNow, Conflict, ApiException, ClientError, TimeoutError)
"""What the cluster or the network says no with; anything else is a fault of ours."""

Work = Callable[[JobKey], Awaitable[float | None]]
"""One pass. Returns seconds until the next one is due, None for not before something changes."""


class WorkQueue:
    """A call takes the same time however many keys there are: the event loop's timers are the only order by time."""

    def __init__(self) -> None:
        self._ready: OrderedDict[JobKey, float] = OrderedDict()
        """Keys to be done, in this order, with the monotonic time since when."""
        self._again: dict[JobKey, float] = {}
        """The same of keys that are worked on and were asked for meanwhile."""
        self._later: dict[JobKey, asyncio.TimerHandle] = {}
        self._working: set[JobKey] = set()
        self._failures: dict[JobKey, int] = {}
        self._changed = asyncio.Event()
        self.passes = 0
        self.failed_passes = 0

    def add(self, key: JobKey, *, after: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        timer = self._later.get(key)
        if key in self._ready or key in self._again or (timer and timer.when() <= loop.time() + after):
            return
        if timer:
            timer.cancel()
        if after > 0:
            self._later[key] = loop.call_later(after, self._make_ready, key)
        else:
            self._make_ready(key)

    def remind(self, key: JobKey) -> None:
        """A key that waits for its next try is left to wait; one whose time is far off may have something new."""
        if key not in self._failures:
            self.add(key)

    def oldest_age(self) -> float:
        """Seconds that the longest overdue key has waited; 0 where none waits."""
        since = [*islice(self._ready.values(), 1), *self._again.values()]
        return time.monotonic() - min(since) if since else 0.0

    async def run(self, work: Work, *, at_once: int) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                while self._ready and len(self._working) < at_once:
                    key, _ = self._ready.popitem(last=False)
                    self._working.add(key)
                    tasks.create_task(self._pass(key, work))
                await self._changed.wait()

    def _make_ready(self, key: JobKey) -> None:
        self._later.pop(key, None)
        (self._again if key in self._working else self._ready)[key] = time.monotonic()
        self._changed.set()

    def _pause(self, key: JobKey, error: Exception) -> float:
        """In seconds."""
        self.failed_passes += 1
        pause: float = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failures[key] - 1, 10))
        pause *= 1 + random.random() / 10
        log.warning("%s/%s: %s; again in %.0f s", *key, error, pause, exc_info=not isinstance(error, EXPECTED))
        return pause

    async def _pass(self, key: JobKey, work: Work) -> None:
        self.passes += 1
        try:
            due = await work(key)
        except Exception as error:
            # Whatever it was, others go on, and this key is tried again.
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            # Somebody was faster, and what is newest is known by now. More of them in a row have another cause.
            is_race = failures == 1 and isinstance(error, Conflict)
            due = 0.0 if is_race else self._pause(key, error)
        else:
            self._failures.pop(key, None)
        finally:
            self._working.discard(key)
            if key in self._again:
                self._ready[key] = self._again.pop(key)
            self._changed.set()
        if due is not None:
            self.add(key, after=due)
