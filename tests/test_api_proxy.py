"""The proxy alone, in front of a small HTTP server that notes what reaches it; killed clients are real processes."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kopf
import pytest
import yaml
from aiohttp import web
from api_proxy import ApiProxy, Call, kill
from kubernetes.aio import client, config

JOBS = "/apis/kubeflow.org/v1/namespaces/default/pytorchjobs"
ANSWER_HEADERS = {"Content-Type": "application/json", "X-Answer": "server"}
PATIENCE_SECONDS = 300


class Server:
    """Answers 201 to a POST, echoes any other body, and streams a watch's events as the test releases them."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, bytes]] = []
        self.headers: dict[str, str] = {}
        self.watchers = 0
        self.loop = asyncio.new_event_loop()
        self.events: asyncio.Queue[bytes] = asyncio.Queue()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result()

    async def _listen(self) -> int:
        self.runner = web.ServerRunner(web.Server(self._answer, handler_cancellation=True), shutdown_timeout=0)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return int(self.runner.addresses[0][1])

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.got.append((request.method, request.raw_path, body))
        self.headers = dict(request.headers)
        if "watch=" not in request.raw_path:
            status = 201 if request.method == "POST" else 200
            return web.Response(status=status, body=body or b'{"items": []}', headers=ANSWER_HEADERS)
        answer = web.StreamResponse()
        await answer.prepare(request)
        self.watchers += 1
        try:
            while event := await self.events.get():
                await answer.write(event)
        finally:
            self.watchers -= 1
        return answer

    def send(self, event: bytes) -> None:
        """To whoever watches; an empty one ends the watch."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def kubeconfig(server: Server, tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    listing = {
        "current-context": "b",
        "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
        "users": [{"name": "c", "user": {"token": "secret"}}],
        "contexts": [{"name": "b", "context": {"cluster": "a", "user": "c", "namespace": "team-a"}}],
    }
    path.write_text(yaml.safe_dump(listing))
    return path


@pytest.fixture
def proxy(kubeconfig: Path, tmp_path: Path) -> Iterator[ApiProxy]:
    with ApiProxy(kubeconfig, tmp_path) as proxy:
        yield proxy


class Client:
    """A process that POSTs `{}` when told to, and prints the answer's status."""

    def __init__(self, proxy: ApiProxy) -> None:
        script = (
            "import http.client\n"
            f"connection = http.client.HTTPConnection('127.0.0.1', {proxy.port})\n"
            "input()\n"
            f"connection.request('POST', '{JOBS}', body='{{}}', headers={{'Content-Type': 'application/json'}})\n"
            "print(connection.getresponse().status)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def post(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def printed(self) -> str:
        return self.process.communicate(timeout=PATIENCE_SECONDS)[0]


@pytest.fixture
def poster(proxy: ApiProxy) -> Iterator[Client]:
    poster = Client(proxy)
    with poster.process:  # closes its pipes
        yield poster
        kill(poster.process)


def call(proxy: ApiProxy, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE_SECONDS)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, body=text, headers={"Content-Type": "application/json"} if text else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_calls_pass_unchanged_and_are_noted_with_what_they_carried(proxy: ApiProxy, server: Server) -> None:
    path = "/api/v1/pods?labelSelector=a%3Db%2Cc&limit=5"
    assert call(proxy, "GET", path) == (200, b'{"items": []}')
    assert call(proxy, "POST", JOBS, {"kind": "PyTorchJob"}) == (201, b'{"kind": "PyTorchJob"}')
    assert call(proxy, "DELETE", f"{JOBS}/a") == (200, b'{"items": []}')
    assert server.got == [
        ("GET", path, b""),
        ("POST", JOBS, b'{"kind": "PyTorchJob"}'),
        ("DELETE", f"{JOBS}/a", b""),
    ]
    read, *writes = proxy.calls
    assert read == Call(
        "GET", "/api/v1/pods", {"labelSelector": "a=b,c", "limit": "5"}, None, forwarded=True, status=200
    )
    assert writes == [
        Call("POST", JOBS, {}, {"kind": "PyTorchJob"}, forwarded=True, status=201),
        Call("DELETE", f"{JOBS}/a", {}, None, forwarded=True, status=200),
    ]
    assert proxy.writes == writes


def test_headers_pass_both_ways(proxy: ApiProxy, server: Server) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{proxy.port}{JOBS}",
        headers={"Authorization": "Bearer secret", "User-Agent": "operator/1", "Accept-Encoding": "gzip"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        assert answer.headers["X-Answer"] == "server"
    sent = {name: server.headers[name] for name in ("Authorization", "User-Agent", "Accept-Encoding", "Host")}
    assert sent == {
        "Authorization": "Bearer secret",
        "User-Agent": "operator/1",
        "Accept-Encoding": "gzip",
        "Host": f"127.0.0.1:{server.port}",
    }
    assert "Accept" not in server.headers


def test_each_event_of_a_watch_arrives_as_soon_as_it_is_sent(proxy: ApiProxy, server: Server) -> None:
    url = f"http://127.0.0.1:{proxy.port}{JOBS}?watch=true"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as watch:  # returns with the headers, before any event
        assert proxy.calls[0].status == 200
        for number in range(3):
            line = b'{"type": "ADDED", "object": %d}\n' % number
            server.send(line)
            assert watch.readline() == line
        server.send(b"")
        assert watch.readline() == b""


def test_a_watch_ends_at_the_server_when_its_client_goes(proxy: ApiProxy, server: Server) -> None:
    watch = urllib.request.urlopen(f"http://127.0.0.1:{proxy.port}{JOBS}?watch=1", timeout=PATIENCE_SECONDS)
    soon(lambda: server.watchers == 1)
    watch.close()
    soon(lambda: server.watchers == 0)


def test_a_call_of_a_client_killed_before_it_never_reaches_the_server(
    proxy: ApiProxy, server: Server, poster: Client
) -> None:
    killed = proxy.at("POST", r"/pytorchjobs$", when="before", do=lambda: kill(poster.process))
    poster.post()
    assert killed.over.wait(PATIENCE_SECONDS)
    assert call(proxy, "GET", "/healthz")[0] == 200
    assert [method for method, _, _ in server.got] == ["GET"]
    assert killed.call == Call("POST", JOBS, {}, {}, forwarded=False, status=None)
    assert poster.process.returncode == -signal.SIGKILL


def test_a_call_of_a_client_killed_after_it_has_reached_the_server(
    proxy: ApiProxy, server: Server, poster: Client
) -> None:
    killed = proxy.at("POST", r"/pytorchjobs$", when="after", do=lambda: kill(poster.process))
    poster.post()
    assert killed.over.wait(PATIENCE_SECONDS)
    assert server.got == [("POST", JOBS, b"{}")]
    assert proxy.writes == [Call("POST", JOBS, {}, {}, forwarded=True, status=201)]
    assert poster.printed() == ""


def test_a_call_that_the_server_has_not_answered_yet_survives_its_client(
    proxy: ApiProxy, server: Server, poster: Client
) -> None:
    release = threading.Event()
    held = proxy.at("POST", r"/pytorchjobs$", when="after", do=lambda: release.wait(PATIENCE_SECONDS))
    poster.post()
    assert held.reached.wait(PATIENCE_SECONDS)
    kill(poster.process)
    assert not held.over.is_set()
    release.set()
    assert held.over.wait(PATIENCE_SECONDS)
    assert proxy.writes[0].status == 201
    assert len(server.got) == 1


def test_a_stopped_client_s_call_is_held_and_forwarded_when_it_goes_on(
    proxy: ApiProxy, server: Server, poster: Client
) -> None:
    release = threading.Event()

    def stop_and_hold() -> None:
        os.kill(poster.process.pid, signal.SIGSTOP)
        assert release.wait(PATIENCE_SECONDS)

    held = proxy.at("POST", r"/pytorchjobs$", when="before", do=stop_and_hold)
    poster.post()
    assert held.reached.wait(PATIENCE_SECONDS)
    assert call(proxy, "GET", "/healthz")[0] == 200  # nobody else waits
    assert [method for method, _, _ in server.got] == ["GET"]
    release.set()
    soon(lambda: len(server.got) == 2)
    os.kill(poster.process.pid, signal.SIGCONT)
    assert poster.printed() == "201\n"


def test_only_the_nth_matching_call_is_interrupted(proxy: ApiProxy) -> None:
    done: list[int] = []
    proxy.at("POST", r"/pytorchjobs$", when="before", nth=2, do=lambda: done.append(len(proxy.writes)))
    for path in (JOBS, "/api/v1/events", JOBS, JOBS):
        call(proxy, "POST", path, {})
    assert done == [3]


def test_refusing_breaks_open_connections_and_new_ones_until_it_admits_again(proxy: ApiProxy, server: Server) -> None:
    watch = urllib.request.urlopen(f"http://127.0.0.1:{proxy.port}{JOBS}?watch=true", timeout=PATIENCE_SECONDS)
    proxy.refuse()
    with pytest.raises(http.client.IncompleteRead):
        watch.read()
    with pytest.raises(ConnectionRefusedError):
        call(proxy, "GET", "/healthz")
    soon(lambda: server.watchers == 0)
    proxy.admit()
    assert call(proxy, "GET", "/healthz")[0] == 200


def test_an_answer_can_be_lost_after_the_server_has_done_its_work(proxy: ApiProxy, server: Server) -> None:
    proxy.at("POST", r"/pytorchjobs$", when="after", do=proxy.refuse)
    with pytest.raises(ConnectionError):
        call(proxy, "POST", JOBS, {})
    assert server.got == [("POST", JOBS, b"{}")]


def test_a_server_that_is_gone_is_a_broken_connection_for_the_client(kubeconfig: Path, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        settings = yaml.safe_load(kubeconfig.read_text())
        settings["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        kubeconfig.write_text(yaml.safe_dump(settings))
        with ApiProxy(kubeconfig, tmp_path) as proxy, pytest.raises(ConnectionError):
            call(proxy, "GET", "/healthz")
    assert proxy.calls == [Call("GET", "/healthz", {}, None, forwarded=True, status=None)]


def test_what_fails_in_do_fails_the_test(kubeconfig: Path, tmp_path: Path) -> None:
    def check() -> None:
        assert not "as expected"

    proxy = ApiProxy(kubeconfig, tmp_path)
    proxy.at("GET", "/healthz", when="before", do=check)
    with pytest.raises(ExceptionGroup) as failed, proxy:
        call(proxy, "GET", "/healthz")
    assert [type(error) for error in failed.value.exceptions] == [AssertionError]


def test_kopf_and_the_kubernetes_client_take_the_proxy_s_kubeconfig(
    proxy: ApiProxy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(proxy.kubeconfig))
    known = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    assert known is not None
    assert (known.server, known.token, known.default_namespace) == (
        f"http://127.0.0.1:{proxy.port}",
        "secret",
        "team-a",
    )

    async def list_pods() -> None:
        settings = client.Configuration()
        await config.load_kube_config(str(proxy.kubeconfig), client_configuration=settings)
        async with client.ApiClient(settings) as api:
            await client.CoreV1Api(api).list_namespaced_pod("default")

    asyncio.run(list_pods())
    assert server.headers["Authorization"] == "Bearer secret"
    assert proxy.calls[0].path == "/api/v1/namespaces/default/pods"
