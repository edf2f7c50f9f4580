"""An operator for named namespaces: one that is deleted, with the operator's Role, and comes back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from sft_operator.kubernetes import run
from sft_operator.kubernetes.api import ClusterApi
from sft_operator.kubernetes.health import serve_health
from sft_operator.kubernetes.progress import ProgressPoller
from sft_operator.kubernetes.pytorch_job import TrainerDefaults
from sft_operator.kubernetes.run import Operator, Options, StartAnew
from sft_operator.lifecycle.backend import JobKey

LEFT_OUT = (
    "no jobs are run in team-b: the namespace, or the operator's Role in it, is not there; create the namespace and "
    "run helm upgrade, which makes its Role, or leave it out of watchNamespaces (--namespace)"
)


class Rights:
    """In the API server's place: a job in every namespace, and who may list it."""

    def __init__(self, *closed: str) -> None:
        self.closed = set(closed)

    async def answer(self, request: web.Request) -> web.Response:
        kind, namespace = request.match_info["kind"], request.match_info["namespace"]
        if namespace in self.closed:
            return web.json_response({"message": f"{kind} is forbidden in {namespace}"}, status=403)
        metadata = {"name": "small", "namespace": namespace, "uid": f"uid-{namespace}", "resourceVersion": "1"}
        items = [{"metadata": metadata, "spec": {}}] if kind == "sftjobs" else []
        return web.json_response({"items": items, "metadata": {"resourceVersion": "2"}})


@asynccontextmanager
async def an_operator(rights: Rights) -> AsyncIterator[Operator]:
    """For team-a and team-b."""
    application = web.Application()
    for group in ("/api/v1", "/apis/{group}/{version}"):
        application.router.add_get(f"{group}/namespaces/{{namespace}}/{{kind}}", rights.answer)
    async with TestServer(application) as server, ApiClient(Configuration(host=str(server.make_url("")))) as client:
        options = Options(TrainerDefaults(image="trainer:1"), ("team-a", "team-b"), "team-a", None)
        api = ClusterApi(client, namespaces=options.namespaces)
        yield Operator(api, ProgressPoller(api, None), options)


def play(rights: Rights, scene: Callable[[Operator], Awaitable[None]]) -> None:
    async def played() -> None:
        async with an_operator(rights) as operator:
            await scene(operator)

    asyncio.run(asyncio.wait_for(played(), 60))


def jobs_of(operator: Operator) -> list[JobKey]:
    return list(operator.cache.unfinished_jobs())


async def page(operator: Operator, path: str) -> tuple[int, str]:
    runner = await serve_health(operator.health, "127.0.0.1:0")
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()
    finally:
        await runner.cleanup()


def test_a_namespace_that_is_gone_stops_no_other_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(operator: Operator) -> None:
        await operator.wait_for_namespaces()
        await operator.relist(pytorch_jobs=True)
        assert jobs_of(operator) == [JobKey("team-a", "small")]
        operator.health.leads = True
        assert await page(operator, "/readyz") == (200, f"at work\n{LEFT_OUT}\n")
        assert "sft_operator_namespaces_left_out 1.0\n" in (await page(operator, "/metrics"))[1]

    play(Rights("team-b"), scene)
    assert [record.getMessage() for record in caplog.records] == [LEFT_OUT]


def test_where_all_namespaces_are_there_nothing_is_told_of_them(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(operator: Operator) -> None:
        await operator.wait_for_namespaces()
        await operator.relist(pytorch_jobs=True)
        assert jobs_of(operator) == [JobKey("team-a", "small"), JobKey("team-b", "small")]
        operator.health.leads = True
        assert await page(operator, "/readyz") == (200, "at work\n")

    play(Rights(), scene)
    assert caplog.records == []


@pytest.mark.parametrize(("before", "after"), [([], ["team-b"]), (["team-b"], [])], ids=["goes", "comes back"])
def test_an_operator_begins_anew_when_a_namespace_goes_or_comes_back(before: list[str], after: list[str]) -> None:
    rights = Rights(*before)

    async def scene(operator: Operator) -> None:
        await operator.wait_for_namespaces()
        await operator.relist(pytorch_jobs=True)
        rights.closed = set(after)
        with pytest.raises(StartAnew):
            await operator.relist(pytorch_jobs=True)

    play(rights, scene)


def test_without_any_of_its_namespaces_it_waits_and_looks_into_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "DISCOVERY_SECONDS", 0.0)
    rights = Rights("team-a", "team-b")

    async def scene(operator: Operator) -> None:
        waits = asyncio.create_task(operator.wait_for_namespaces())
        while operator.health.waits_for == "its lease":
            await asyncio.sleep(0)
        assert await page(operator, "/readyz") == (503, f"waits: {LEFT_OUT.replace('team-b', 'team-a, team-b')}\n")
        rights.closed = {"team-a"}
        await waits
        assert await page(operator, "/readyz") == (503, "waits: its lease\n")
        await operator.relist(pytorch_jobs=True)
        assert jobs_of(operator) == [JobKey("team-b", "small")]

    play(rights, scene)
