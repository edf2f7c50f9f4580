"""A list that many passes want to read: one of them asks, seldom, and the others use its answer.

Used for what is looked up and not watched: Kueue's workloads, a namespace's warnings.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Seldom(Generic[Answer]):
    def __init__(self, ask: Callable[[], Awaitable[Answer]], *, before: Answer) -> None:
        """`before` is the answer until there is one."""
        self.answer = before
        self.has_failed = False
        """The last time that it was asked: the answer is the one before."""
        self._ask = ask
        self._asked_at = float("-inf")
        self._lock = asyncio.Lock()

    async def renew(self, *, patience: float) -> None:
        """Asks, where that is `patience` seconds ago. Raises what that raises, to the one that asked."""
        if self.has_failed and self._lock.locked():
            # Who waited here would keep its pass from others, for an answer that may not come.
            return
        async with self._lock:
            if time.monotonic() - self._asked_at < patience:
                return
            try:
                self.answer = await self._ask()
            except BaseException:
                self.has_failed = True
                raise
            else:
                self.has_failed = False
            finally:
                # A failure counts too, and from its end: one that took long is not repeated by all who waited for it.
                self._asked_at = time.monotonic()

    def is_unused(self, *, since_seconds: float) -> bool:
        return not self._lock.locked() and time.monotonic() - self._asked_at >= since_seconds
