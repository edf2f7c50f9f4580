"""The local cluster's API server under load: many calls at once, watches, and what it counts itself.

Called by `benchmarks.operator`. Speaks with the administrator's certificate and no limit on its rate.
"""

import asyncio
import base64
import json
import re
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Object = dict[str, Any]

AT_ONCE = 32
"""Calls under way: more only wait in the API server."""
PATIENCE_SECONDS = 600
_COUNTED = re.compile(r"apiserver_request_total\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
WRITES = ("POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION")


class Refused(Exception):
    """A call was refused: method, path and the API server's words."""


class ApiServer:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def call(
        self, method: str, path: str, body: Object | None = None, *, kind: str = "application/json"
    ) -> Object:
        """Raises Refused."""
        headers = {"Content-Type": kind}
        async with self._slots, self._session.request(method, path, json=body, headers=headers) as response:
            if response.status >= 400:
                raise Refused(f"{method} {path}: {response.status} {(await response.text())[:500]}")
            answer: Object = await response.json()
            return answer

    async def write_status(self, path: str, status: Object) -> Object:
        return await self.call("PATCH", f"{path}/status", {"status": status}, kind="application/merge-patch+json")

    async def items(self, path: str) -> list[Object]:
        return list((await self.call("GET", path))["items"])

    async def write_count(self, resources: Iterable[str]) -> int:
        """Calls that changed one of these, or tried to, as `sftjobs` or `sftjobs/status`; by the server's metrics."""
        async with self._session.get("/metrics") as response:
            text = await response.text()
        counts: Counter[str] = Counter()
        for told in _COUNTED.finditer(text):
            labels = dict(_LABEL.findall(told[1]))
            if labels["verb"] in WRITES:
                counts[labels["resource"]] += int(float(told[2]))
        return sum(counts[resource] for resource in resources)

    @asynccontextmanager
    async def watched(self, path: str) -> AsyncIterator["Watch"]:
        """From now on."""
        version = (await self.call("GET", f"{path}?limit=1"))["metadata"]["resourceVersion"]
        watch = Watch()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self._follow(path, version, watch))
            yield watch
            running.cancel()

    async def _follow(self, path: str, version: str, watch: "Watch") -> None:
        """The API server ends a watch when it likes: soon after a definition is new, for one."""
        while True:
            async with self._session.get(f"{path}?watch=1&resourceVersion={version}") as response:
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise Refused(f"watch {path}: {event['object']['message']}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    watch.take(event["type"], event["object"], time.monotonic())


class Watch:
    """When each object was first seen, and when it first was in a phase: monotonic seconds by name."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        self.phases: dict[tuple[str, str], float] = {}
        self._changed = asyncio.Event()

    def take(self, type_: str, found: Object, now: float) -> None:
        name, phase = found["metadata"]["name"], found.get("status", {}).get("phase")
        if type_ == "DELETED":
            return
        self.seen.setdefault(name, now)
        self.phases.setdefault((name, phase), now)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Raises TimeoutError after `PATIENCE_SECONDS`."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


async def all_of(calls: Iterable[Awaitable[Any]]) -> None:
    """Raises what the first that fails raises."""
    async with asyncio.TaskGroup() as tasks:
        for call in calls:
            tasks.create_task(_done(call))


async def _done(call: Awaitable[Any]) -> None:
    await call


@asynccontextmanager
async def connected(kubeconfig: Path) -> AsyncIterator[ApiServer]:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    connector = aiohttp.TCPConnector(ssl=_tls(cluster, user), limit=AT_ONCE + 8)
    # A line of a watch is a whole object.
    async with aiohttp.ClientSession(
        cluster["server"], connector=connector, timeout=timeout, read_bufsize=2**20
    ) as session:
        yield ApiServer(session)


def _tls(cluster: Object, user: Object) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    with tempfile.NamedTemporaryFile() as file:
        # The library takes a key from a file only.
        file.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
        file.flush()
        context.load_cert_chain(file.name)
    return context
