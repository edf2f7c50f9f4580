"""What is looked up in lists, of workloads and of warnings: by one for all, whether the API server answers or not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from cluster_objects import pod, pytorch_job
from jobs import NOW, a_job, in_attempt
from kubernetes.aio.client import ApiException

from sft_operator.kubernetes import queued, warnings
from sft_operator.kubernetes.api import Listing
from sft_operator.kubernetes.backend import PyTorchJobBackend
from sft_operator.kubernetes.cache import Cache
from sft_operator.kubernetes.progress import ProgressPoller
from sft_operator.kubernetes.pytorch_job import TrainerDefaults
from sft_operator.kubernetes.queued import QueueNews
from sft_operator.kubernetes.warnings import Warnings
from sft_operator.lifecycle.backend import JobKey
from sft_operator.lifecycle.decide import DeleteAttempt, decide
from sftjob.base import utc_now
from sftjob.failure import Obstacle
from sftjob.status import Phase

LONG = 3600.0
WORKLOAD = {
    "metadata": {"labels": {"kueue.x-k8s.io/job-uid": "job-1"}},
    "status": {"conditions": [{"type": "QuotaReserved", "status": "False", "message": "no quota"}]},
}
OF_NOTHING = {"involvedObject": {"kind": "Pod"}, "reason": "FailedCreatePod"}
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
    (WORKLOAD, lambda api: partial(QueueNews(api).of, is_news=False), "no quota", "", False),
    (WARNING, lambda api: Warnings(api).about, [WARNING], [], True),
]


@pytest.mark.parametrize(("item", "looker", "told", "nothing", "raises"), KINDS, ids=["workloads", "warnings"])
def test_a_list_that_fails_is_asked_for_once_and_not_once_for_each_who_waits(
    item: dict[str, Any],
    looker: Callable[[Any], Any],
    told: Any,
    nothing: Any,
    raises: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`raises`: to the one that asked. The word of a queue stands in a status, and must not come and go there."""

    def wait(seconds: float) -> None:
        monkeypatch.setattr(queued, "LIST_AGAIN_SECONDS", seconds)
        monkeypatch.setattr(queued, "NEWS_AGAIN_SECONDS", seconds)
        monkeypatch.setattr(warnings, "LIST_AGAIN_SECONDS", seconds)

    async def scene() -> None:
        lists = Lists(item)
        look = looker(lists)

        async def looks() -> list[Any]:
            return await asyncio.gather(*(look(pytorch_job(1)) for _ in range(20)), return_exceptions=True)

        wait(LONG)
        lists.answers = False
        first, *others = await looks()
        assert isinstance(first, ApiException) if raises else first == nothing
        assert (others, lists.asked) == ([nothing] * 19, 1)
        assert (await looks(), lists.asked) == ([nothing] * 20, 1)

        wait(0.0)
        lists.answers = True
        assert await look(pytorch_job(1)) == told
        lists.answers = False
        (answer,) = await asyncio.gather(look(pytorch_job(1)), return_exceptions=True)
        assert isinstance(answer, ApiException) if raises else answer == told
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


def test_a_warning_that_is_about_nothing_hides_no_other() -> None:
    job = {"metadata": {"namespace": "default", "uid": "job-1"}}
    warnings_ = Warnings(Lists(OF_NOTHING, WARNING))  # type: ignore[arg-type]
    assert asyncio.run(warnings_.about(job)) == [WARNING]


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


def test_an_empty_word_of_a_queue_is_asked_for_seldom_and_soon_where_it_is_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind the first of a strict queue Kueue says nothing, for as long as that takes."""
    monkeypatch.setattr(queued, "LIST_AGAIN_SECONDS", LONG)
    monkeypatch.setattr(queued, "NEWS_AGAIN_SECONDS", 0.0)

    async def scene() -> None:
        lists = Lists(WORKLOAD | {"status": {}})
        news = QueueNews(lists)  # type: ignore[arg-type]
        for is_news, asked in ((False, 1), (False, 1), (True, 2), (False, 2)):
            assert await news.of(pytorch_job(1), is_news=is_news) == ""
            assert lists.asked == asked

    asyncio.run(scene())


class Live(Lists):
    """With a PyTorchJob that a live look finds."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__(WORKLOAD)
        self.found = found

    async def get_pytorch_job(self, namespace: str, name: str) -> dict[str, Any]:
        assert (namespace, name) == ("default", "tiny-4a49acf8-a1")
        return self.found

    async def list_pods_of(self, key: JobKey, uid: str) -> list[dict[str, Any]]:
        assert (key, uid) == (JobKey("default", "tiny"), "uid-1")
        return []


@pytest.mark.parametrize("is_let_go", [True, False])
def test_an_attempt_whose_pod_runs_has_been_taken_back_only_if_a_live_look_says_so(is_let_go: bool) -> None:
    """Each kind has a watch of its own: that of the PyTorchJob may be behind that of its pod."""

    async def scene() -> None:
        live = pytorch_job(1) if is_let_go else held_by("team-a")
        live["metadata"]["resourceVersion"] = "2"
        backend, cache = a_backend(Live(live))
        cache.put_pytorch_job(held_by("team-a"))
        cache.put_pod(pod(1))
        job = a_job(queue="team-a", status=in_attempt(1, Phase.QUEUED))
        decision = decide(job, await backend.observe(job), now=NOW)
        assert decision.action == (None if is_let_go else DeleteAttempt(1))
        assert (decision.status.attempts.ending is None) == is_let_go

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("queue", "reason", "begin"),
    [
        (
            "team-a",
            Obstacle.QUEUE_SILENT,
            "no controller has picked up the attempt's PyTorchJob for the queue team-a; check that Kueue runs ",
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


@pytest.mark.parametrize(
    ("pods", "trouble"),
    [([], Obstacle.POD_REFUSED), ([pod(1, phase="Pending")], None)],
    ids=["refused", "created since"],
)
def test_a_pod_that_was_refused_is_trouble_until_it_is_there(
    pods: list[dict[str, Any]], trouble: Obstacle | None
) -> None:
    async def scene() -> None:
        backend, cache = a_backend(Lists(WARNING | {"lastTimestamp": utc_now().isoformat()}))
        taken_up = pytorch_job(1) | {"status": {"conditions": [{"type": "Created", "status": "True"}]}}
        cache.put_pytorch_job(taken_up)
        for one in pods:
            cache.put_pod(one)
        found = await backend.observe(a_job(status=in_attempt(1, Phase.STARTING)))
        assert (found.trouble and found.trouble.reason) == trouble

    asyncio.run(scene())


def test_an_attempt_whose_pods_are_gated_says_by_what() -> None:
    gated = pod(1, phase="Pending")
    gated["spec"]["schedulingGates"] = [{"name": "example.com/audit"}]

    async def scene() -> None:
        backend, cache = a_backend(Lists())
        cache.put_pytorch_job(pytorch_job(1))
        cache.put_pod(gated)
        found = await backend.observe(a_job(status=in_attempt(1, Phase.STARTING)))
        assert found.trouble is not None
        assert found.trouble.reason == Obstacle.SCHEDULING_GATED
        assert "(example.com/audit)" in found.trouble.message

    asyncio.run(scene())
