"""What is looked up in lists, of workloads and of warnings: by one for all, whether the API server answers or not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from cluster_objects import pod, pytorch_job
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
from sftjob.base import utc_now
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


def a_backend(lists: Lists, cache: Cache) -> PyTorchJobBackend:
    poller = ProgressPoller(lists, None)  # type: ignore[arg-type]
    return PyTorchJobBackend(lists, cache, poller, defaults=TrainerDefaults(image="trainer:1"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("queue", "trouble"), [(None, None), ("team-a", Obstacle.QUEUE_SILENT)])
def test_an_attempt_that_nobody_takes_up_is_trouble_of_its_queue_where_it_has_one(
    queue: str | None, trouble: Obstacle | None
) -> None:
    async def scene() -> None:
        cache = Cache()
        backend = a_backend(Lists(), cache)
        held = pytorch_job(1)
        held["spec"]["runPolicy"]["suspend"] = True
        cache.put_pytorch_job(held)
        found = await backend.observe(a_job(queue=queue, status=in_attempt(1, Phase.STARTING)))
        assert found.attempts[0].is_suspended
        assert (found.trouble and found.trouble.reason) == trouble

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("pods", "trouble"),
    [([], Obstacle.POD_REFUSED), ([pod(1, phase="Pending")], None)],
    ids=["refused", "created since"],
)
def test_a_pod_that_was_refused_is_trouble_until_it_is_there(
    pods: list[dict[str, Any]], trouble: Obstacle | None
) -> None:
    async def scene() -> None:
        cache = Cache()
        backend = a_backend(Lists(WARNING | {"lastTimestamp": utc_now().isoformat()}), cache)
        taken_up = pytorch_job(1) | {"status": {"conditions": [{"type": "Created", "status": "True"}]}}
        cache.put_pytorch_job(taken_up)
        for one in pods:
            cache.put_pod(one)
        found = await backend.observe(a_job(status=in_attempt(1, Phase.STARTING)))
        assert (found.trouble and found.trouble.reason) == trouble

    asyncio.run(scene())
