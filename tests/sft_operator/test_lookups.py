"""What is looked up in lists, of workloads and of warnings: by one for all, whether the API server answers or not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from cluster_objects import pytorch_job
from jobs import a_job, in_attempt
from kubernetes.aio.client import ApiException

from sft_operator.kubernetes import queued, warnings
from sft_operator.kubernetes.api import Listing
from sft_operator.kubernetes.backend import PyTorchJobBackend
from sft_operator.kubernetes.cache import Cache
from sft_operator.kubernetes.progress import ProgressPoller
from sft_operator.kubernetes.pytorch_job import TrainerDefaults
from sft_operator.kubernetes.queued import QueueNews
from sft_operator.kubernetes.warnings import Warnings
from sftjob.failure import Obstacle
from sftjob.status import Phase

LONG = 3600.0
WORKLOAD = {
    "metadata": {"labels": {"kueue.x-k8s.io/job-uid": "job-1"}},
    "status": {"conditions": [{"type": "QuotaReserved", "status": "False", "message": "no quota"}]},
}
WARNING = {"involvedObject": {"kind": "PyTorchJob", "uid": "job-1"}, "reason": "FailedCreatePod"}


class Lists:
    """In the API server's place: counts what it is asked, and answers when and how it is told to."""

    def __init__(self, *items: dict[str, Any]) -> None:
        self.items = items
        self.asked = 0
        self.answers = True
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def list_workloads(self) -> AsyncIterator[Listing]:
        self.asked += 1
        await asyncio.sleep(0)
        await self.may_end.wait()
        if not self.answers:
            raise ApiException(status=500)
        yield Listing([*self.items], 1)

    def list_warnings(self, namespace: str) -> AsyncIterator[Listing]:
        assert namespace == "default"
        return self.list_workloads()


def a_backend(lists: Lists) -> tuple[PyTorchJobBackend, Cache]:
    cache = Cache()
    poller = ProgressPoller(lists, None)  # type: ignore[arg-type]
    defaults = TrainerDefaults(image="trainer:1")
    return PyTorchJobBackend(lists, cache, poller, defaults=defaults), cache  # type: ignore[arg-type]


def held_by(queue: str | None) -> dict[str, Any]:
    """A PyTorchJob that is suspended, and the queue that its label names."""
    held = pytorch_job(1)
    held["spec"]["runPolicy"]["suspend"] = True
    held["metadata"]["labels"] |= {"kueue.x-k8s.io/queue-name": queue} if queue else {}
    return held


KINDS = [
    (WORKLOAD, lambda api: QueueNews(api).of, "no quota", ""),
    (WARNING, lambda api: Warnings(api).about, [WARNING], []),
]


@pytest.mark.parametrize(("item", "looker", "told", "nothing"), KINDS, ids=["workloads", "warnings"])
def test_a_list_that_fails_is_asked_for_once_and_not_once_for_each_who_waits(
    item: dict[str, Any], looker: Callable[[Any], Any], told: Any, nothing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(seconds: float) -> None:
        monkeypatch.setattr(queued, "LIST_AGAIN_SECONDS", seconds)
        monkeypatch.setattr(queued, "MISSING_AGAIN_SECONDS", seconds)
        monkeypatch.setattr(warnings, "LIST_AGAIN_SECONDS", seconds)

    async def scene() -> None:
        lists = Lists(item)
        look = looker(lists)

        async def looks() -> list[Any]:
            return await asyncio.gather(*(look(pytorch_job(1)) for _ in range(20)), return_exceptions=True)

        wait(LONG)
        lists.answers = False
        first, *others = await looks()
        assert isinstance(first, ApiException)
        assert (others, lists.asked) == ([nothing] * 19, 1)
        assert (await looks(), lists.asked) == ([nothing] * 20, 1)

        wait(0.0)
        lists.answers = True
        assert await look(pytorch_job(1)) == told
        lists.answers = False
        with pytest.raises(ApiException):
            await look(pytorch_job(1))
        assert lists.asked == 3

        # One tries again and gets no answer for long: nobody waits for it.
        lists.may_end.clear()
        hangs = asyncio.create_task(look(pytorch_job(1)))
        while lists.asked < 4:
            await asyncio.sleep(0)
        assert await asyncio.wait_for(looks(), 60) == [told] * 20
        assert lists.asked == 4
        lists.answers = True
        lists.may_end.set()
        assert await hangs == told

        wait(LONG)
        assert (await looks(), lists.asked) == ([told] * 20, 4)

    asyncio.run(scene())


def test_the_warnings_of_a_namespace_are_forgotten_when_nobody_asks_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "LIST_AGAIN_SECONDS", LONG)

    async def scene() -> None:
        lists = Lists(WARNING)
        found = Warnings(lists)  # type: ignore[arg-type]
        assert await found.about(pytorch_job(1)) == [WARNING]
        found.forget_unused()
        assert await found.about(pytorch_job(1)) == [WARNING]
        assert lists.asked == 1
        monkeypatch.setattr(warnings, "FORGET_SECONDS", 0.0)
        found.forget_unused()
        assert await found.about(pytorch_job(1)) == [WARNING]
        assert lists.asked == 2

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("queue", "reason", "begin"),
    [
        (
            "team-a",
            Obstacle.QUEUE_SILENT,
            "nobody takes up the attempt's PyTorchJob for the queue team-a; look whether Kueue runs ",
        ),
        (
            None,
            Obstacle.QUEUE_MISSING,
            "spec.queue: something suspends PyTorchJobs that name no queue; create the job anew with spec.queue.name,",
        ),
    ],
)
@pytest.mark.parametrize("of_job", ["team-a", None])
def test_an_attempt_that_nobody_will_let_run_is_told_by_the_queue_that_it_has(
    queue: str | None, reason: Obstacle, begin: str, of_job: str | None
) -> None:
    """Kueue may have given it a queue that its job does not name."""

    async def scene() -> None:
        backend, cache = a_backend(Lists())
        cache.put_pytorch_job(held_by(queue))
        found = await backend.observe(a_job(queue=of_job, status=in_attempt(1, Phase.QUEUED)))
        assert found.attempts[0].is_suspended
        assert found.trouble is not None
        assert found.trouble.reason == reason
        assert found.trouble.message.startswith(begin)

    asyncio.run(scene())


def test_an_attempt_without_a_queue_waits_in_vain_whatever_kueue_says_of_it() -> None:
    """Where it manages all jobs it makes a Workload of it, of a LocalQueue without a name."""

    async def scene() -> None:
        backend, cache = a_backend(Lists(WORKLOAD))
        cache.put_pytorch_job(held_by(None))
        found = await backend.observe(a_job(status=in_attempt(1, Phase.QUEUED)))
        assert found.trouble is not None
        assert found.trouble.reason == Obstacle.QUEUE_MISSING

        backend, cache = a_backend(Lists(WORKLOAD))
        cache.put_pytorch_job(held_by("default"))
        found = await backend.observe(a_job(status=in_attempt(1, Phase.QUEUED)))
        assert (found.trouble, found.queue_message) == (None, "no quota")

    asyncio.run(scene())
