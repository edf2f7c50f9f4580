"""The work queue, with real time: orders of events only, never how long they took."""

import asyncio
from collections import Counter

import pytest

from sft_operator.kubernetes import queue as queue_module
from sft_operator.kubernetes.queue import WorkQueue
from sft_operator.lifecycle.backend import Conflict, JobKey, NotNow

A, B, C = JobKey("default", "a"), JobKey("default", "b"), JobKey("default", "c")


async def run_until(queue: WorkQueue, work: queue_module.Work, done: asyncio.Event, *, at_once: int = 4) -> None:
    running = asyncio.create_task(queue.run(work, at_once=at_once))
    await asyncio.wait_for(done.wait(), 300)
    running.cancel()


def test_what_is_asked_for_many_times_is_done_once_and_never_twice_at_a_time() -> None:
    async def scene() -> None:
        queue, done, passes, inside = WorkQueue(), asyncio.Event(), Counter[JobKey](), set()

        async def work(key: JobKey) -> None:
            assert key not in inside
            inside.add(key)
            passes[key] += 1
            if passes[key] == 1 and key == A:
                for _ in range(100):  # while it is under way
                    queue.add(A)
            await asyncio.sleep(0.01)
            inside.discard(key)
            if key == C:
                done.set()
            elif passes == {A: 2, B: 1} and not inside:
                # Behind all that might be left to do.
                asyncio.get_running_loop().call_soon(queue.add, C)

        for _ in range(100):
            queue.add(A)
        queue.add(B)
        await run_until(queue, work, done)
        assert passes == {A: 2, B: 1, C: 1}

    asyncio.run(scene())


def test_a_reminder_brings_forward_what_waits_for_its_time_and_not_what_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_module, "FIRST_RETRY_SECONDS", 3600)

    async def scene() -> None:
        queue, done, passes = WorkQueue(), asyncio.Event(), Counter[JobKey]()

        async def work(key: JobKey) -> float:
            passes[key] += 1
            if key == A:
                raise NotNow("wait")
            if passes[B] == 2:
                done.set()
            return 3600.0

        async def remind() -> None:
            while not passes[A] or not passes[B]:
                await asyncio.sleep(0.01)
            queue.remind(A)
            queue.remind(B)

        queue.add(A)
        queue.add(B)
        await asyncio.gather(run_until(queue, work, done), remind())
        assert passes == {A: 1, B: 2}

    asyncio.run(scene())


def test_a_pass_that_fails_is_tried_again_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "FIRST_RETRY_SECONDS", 0.01)

    async def scene() -> None:
        queue, done, order = WorkQueue(), asyncio.Event(), []

        async def work(key: JobKey) -> None:
            order.append(key)
            if key == A and order.count(A) == 1:
                raise NotNow("wait")
            if key == A and order.count(A) == 2:
                raise KeyError("a fault of ours")
            if order.count(A) == 3 and B in order:
                done.set()

        queue.add(A)
        queue.add(B)
        await run_until(queue, work, done)
        assert order[:2] == [A, B]
        assert (queue.passes, queue.failed_passes) == (4, 2)

    asyncio.run(scene())


def test_a_conflict_is_tried_again_at_once_and_a_second_one_in_a_row_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has changed meanwhile is read anew; a cause that stays would be asked for without end."""
    monkeypatch.setattr(queue_module, "FIRST_RETRY_SECONDS", 3600)

    async def scene() -> None:
        queue, done, passes = WorkQueue(), asyncio.Event(), Counter[JobKey]()

        async def work(key: JobKey) -> None:
            passes[key] += 1
            if key == A or passes[B] == 1:
                raise Conflict("the object has changed")
            asyncio.get_running_loop().call_later(0.2, done.set)

        queue.add(A)
        queue.add(B)
        await run_until(queue, work, done)
        assert passes == {A: 2, B: 2}
        assert queue.failed_passes == 1

    asyncio.run(scene())


def test_a_pass_that_is_due_later_is_done_then_or_when_something_changes() -> None:
    async def scene() -> None:
        queue, done, passes = WorkQueue(), asyncio.Event(), Counter[JobKey]()

        async def work(key: JobKey) -> float | None:
            passes[key] += 1
            if key == A:
                if passes[A] == 2:
                    done.set()
                    return None
                return 3600.0
            queue.add(A)
            return None

        queue.add(A)
        queue.add(B, after=0.05)
        await run_until(queue, work, done)
        assert passes == {A: 2, B: 1}

    asyncio.run(scene())


def test_no_more_are_done_at_once_than_allowed() -> None:
    async def scene() -> None:
        queue, done, inside, most, passes = WorkQueue(), asyncio.Event(), 0, 0, 0

        async def work(_: JobKey) -> None:
            nonlocal inside, most, passes
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.005)
            inside -= 1
            passes += 1
            if passes == 20:
                done.set()

        for number in range(20):
            queue.add(JobKey("default", str(number)))
        await run_until(queue, work, done, at_once=3)
        assert most == 3

    asyncio.run(scene())


def test_a_queue_that_is_told_to_end_does_so_whatever_is_asked_for_at_that_moment() -> None:
    """One that went on would keep an operator at work that has lost its lease."""

    async def work(_: JobKey) -> None:
        raise AssertionError

    async def scene(turns: int) -> None:
        queue = WorkQueue()
        queue.add(B, after=2000)
        running = asyncio.create_task(queue.run(work, at_once=1))
        for _ in range(10):
            await asyncio.sleep(0)
        queue.add(A, after=1000)
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running], timeout=300)
        assert running.cancelled(), turns

    for turns in range(8):
        asyncio.run(scene(turns))
