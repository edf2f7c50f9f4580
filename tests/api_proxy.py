"""A real HTTP proxy in front of a real API server: sees every call, and can act before or after a chosen one.

The program under test gets `ApiProxy.kubeconfig` and speaks plain HTTP to 127.0.0.1; towards the API server the proxy
uses the certificates of the kubeconfig that the test gives it. Calls pass unchanged: watches event by event, everything
else as a whole. No upgrades of a connection (exec, port-forward).
"""

import asyncio
import json
import re
import select
import socket
import ssl
import subprocess
import threading
from base64 import b64decode
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import aiohttp
import yaml
from aiohttp import web
from yarl import URL

HOP_BY_HOP = {"connection", "host", "keep-alive", "te", "trailer", "transfer-encoding", "content-length", "upgrade"}
"""Headers of one connection; the others pass."""
WITHOUT_EFFECT = ("GET", "HEAD", "OPTIONS")


@dataclass
class Call:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    """Decoded JSON; the bytes of anything else; None where the call has no body."""
    forwarded: bool = False
    status: int | None = None
    """The API server's answer; None until there is one."""

    @property
    def is_watch(self) -> bool:
        """Whether its answer goes on and on: a watch, or a log that is followed."""
        return any(self.query.get(name) in ("1", "true") for name in ("watch", "follow"))


@dataclass
class Interruption:
    """What `ApiProxy.at` has arranged: `reached` is set when the call is there and `do` begins, `over` after `do`."""

    method: str
    path: re.Pattern[str]
    when: Literal["before", "after"]
    do: Callable[[], object]
    countdown: int
    call: Call | None = None
    """The interrupted call, from `reached` on."""
    reached: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


def kill(process: subprocess.Popen[Any]) -> None:
    """SIGKILL, for `do`: returns when the process is gone, and with it every connection that it had."""
    process.kill()
    process.wait()


class ApiProxy:
    """Listens between `__enter__` and `__exit__`; all its methods may be called from any thread, also from a `do`."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        """Writes `proxy.kubeconfig` and the client's certificate into `folder`."""
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config, "context", config["current-context"])
        cluster, user = _named(config, "cluster", context["cluster"]), _named(config, "user", context["user"])
        self._upstream = cluster["server"].rstrip("/")
        self._tls = _client_tls(cluster, user, base=kubeconfig.parent, folder=folder)
        self._reservation, self.port = _reserve_port()

        self.kubeconfig = folder / "proxy.kubeconfig"
        ours = {"server": f"http://127.0.0.1:{self.port}"}
        token = {name: value for name, value in user.items() if name == "token"}
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "proxy",
                    "clusters": [{"name": "proxy", "cluster": ours}],
                    "users": [{"name": "proxy", "user": token}],
                    "contexts": [{"name": "proxy", "context": context | {"cluster": "proxy", "user": "proxy"}}],
                }
            )
        )
        self.calls: list[Call] = []
        """Every call in the order of arrival, watches too."""
        self._interruptions: list[Interruption] = []
        self._failures: list[Exception] = []
        self._under_way: set[asyncio.Task[Any]] = set()
        self._site: web.TCPSite | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api-proxy", daemon=True)

    @property
    def writes(self) -> list[Call]:
        """The calls that change something."""
        return [call for call in self.calls if call.method not in WITHOUT_EFFECT]

    def at(
        self, method: str, path: str, *, when: Literal["before", "after"], do: Callable[[], object], nth: int = 1
    ) -> Interruption:
        """Runs `do` once, in a thread of its own: at the nth call from now on whose path has a match of `path`.

        "before": the call waits here while `do` runs. It is forwarded when `do` returns and the client's connection
        is still open then: a client that was killed meanwhile has sent nothing. One that was stopped has, also where
        it goes on only after `do` returned.
        "after": the API server has answered, and the answer waits here while `do` runs.
        What `do` raises is raised by `__exit__`.
        """
        interruption = Interruption(method, re.compile(path), when, do, countdown=nth)
        self._interruptions.append(interruption)
        return interruption

    def refuse(self) -> None:
        """As if the API server were down: breaks what is open, refuses what is new. What it has got it may still do."""
        self._await(self._refuse())

    def admit(self) -> None:
        """On the same port again."""
        self._await(self._admit())

    def __enter__(self) -> "ApiProxy":
        self._thread.start()
        self._await(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._await(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reservation.close()
        if self._failures and raised is None:
            raise ExceptionGroup("in what was to be done at a call", self._failures)

    def _await(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=300)

    async def _open(self) -> None:
        whole_answers = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0),
            timeout=whole_answers,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        # A watch ends with its client; what must not end with it is shielded below.
        self._server = web.Server(self._handle, handler_cancellation=True)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=0)
        await self._runner.setup()
        await self._admit()

    async def _admit(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_port=True)
        await self._site.start()

    async def _refuse(self) -> None:
        if self._site:
            await self._site.stop()
            self._site = None
        for connection in self._server.connections:
            if connection.transport:
                connection.transport.abort()

    async def _close(self) -> None:
        await self._refuse()
        await self._runner.cleanup()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._session.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        url = URL(request.raw_path)
        decoded = json.loads(body) if body and "json" in request.content_type else body or None
        call = Call(request.method, url.path, dict(url.query), decoded)
        self.calls.append(call)
        chosen = self._choose(call)
        task = asyncio.ensure_future(self._carry(call, chosen, request, body))
        if call.is_watch:
            return await task  # and is cancelled with this handler
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # of a client that is gone: nobody else asks for it

    def _choose(self, call: Call) -> list[Interruption]:
        """Those whose turn has come with this call."""
        chosen = []
        for interruption in self._interruptions:
            if interruption.method == call.method and interruption.path.search(call.path):
                interruption.countdown -= 1
                if interruption.countdown == 0:
                    chosen.append(interruption)
        return chosen

    async def _carry(
        self, call: Call, chosen: list[Interruption], request: web.BaseRequest, body: bytes
    ) -> web.StreamResponse:
        await self._interrupt(call, chosen, when="before")
        if _is_gone(request):
            raise ConnectionResetError("the client is gone; its call was not forwarded")
        call.forwarded = True
        sent = self._session.request(
            call.method,
            URL(self._upstream + request.raw_path, encoded=True),
            headers=[(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP],
            data=body or None,
            allow_redirects=False,
        )
        try:
            async with sent as upstream:
                whole = None if call.is_watch else await upstream.read()
                call.status = upstream.status
                await self._interrupt(call, chosen, when="after")
                return await _answer(request, upstream, whole)
        except aiohttp.ClientError as error:
            if request.transport:
                request.transport.abort()  # what the client would have seen without a proxy
            raise ConnectionResetError("the API server broke the connection") from error

    async def _interrupt(self, call: Call, chosen: list[Interruption], *, when: str) -> None:
        for interruption in chosen:
            if interruption.when == when:
                interruption.call = call
                interruption.reached.set()
                try:
                    await _in_thread(interruption.do)
                except Exception as error:
                    self._failures.append(error)
                interruption.over.set()


async def _answer(
    request: web.BaseRequest, upstream: aiohttp.ClientResponse, whole: bytes | None
) -> web.StreamResponse:
    answer = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    for name, value in upstream.headers.items():
        if name.lower() not in HOP_BY_HOP:
            answer.headers.add(name, value)
    if whole is not None:
        answer.content_length = len(whole)
    await answer.prepare(request)
    if whole is None:
        async for chunk in upstream.content.iter_any():
            await answer.write(chunk)
    elif whole:
        await answer.write(whole)
    await answer.write_eof()
    return answer


def _is_gone(request: web.BaseRequest) -> bool:
    """Asked of the kernel, which knows it before the event loop does."""
    if request.transport is None:
        return True
    connection = select.poll()
    connection.register(request.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(connection.poll(0))


async def _in_thread(do: Callable[[], object]) -> None:
    """Not in the loop's pool: that has few threads, and whoever waits for them at the end waits for a held call too."""
    future: Future[object] = Future()

    def work() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(do())
            except Exception as error:
                future.set_exception(error)

    threading.Thread(target=work, name="api-proxy-do", daemon=True).start()
    await asyncio.wrap_future(future)


def _named(config: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in config[f"{kind}s"] if item["name"] == name)[kind]
    return found


def _client_tls(cluster: dict[str, Any], user: dict[str, Any], *, base: Path, folder: Path) -> ssl.SSLContext | bool:
    """Of the CA and the client's certificate, each inline or a file beside the kubeconfig; True for a plain server."""

    def pem(section: dict[str, Any], name: str) -> str | None:
        if f"{name}-data" in section:
            return b64decode(section[f"{name}-data"]).decode()
        return (base / section[name]).read_text() if name in section else None

    if not cluster["server"].startswith("https:"):
        return True
    tls = ssl.create_default_context(cadata=pem(cluster, "certificate-authority"))
    certificate, key = pem(user, "client-certificate"), pem(user, "client-key")
    if certificate and key:
        file = folder / "client.pem"
        file.touch(mode=0o600)
        file.write_text(f"{certificate}\n{key}")
        tls.load_cert_chain(file)
    return tls


def _reserve_port() -> tuple[socket.socket, int]:
    """A free port, kept from others by a socket that never listens: connecting is refused while nobody else does."""
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind(("127.0.0.1", 0))
    return reservation, reservation.getsockname()[1]
