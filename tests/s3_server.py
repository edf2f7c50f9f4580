"""A real MinIO on 127.0.0.1, built from its Go module, and before it a proxy that writes down what is asked.

Requests pass unchanged, signatures and all; answers can be cut or held, and requests held before they arrive.
"""

import contextlib
import fcntl
import http.client
import os
import re
import secrets
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from cluster import versions
from cluster.build import MINIO, binary, build_alone
from cluster.place import cache_folder

PATIENCE_SECONDS = 300
_BLOCK_BYTES = 1 << 16


def minio_program() -> Path:
    """Built where it is not in the user's cache yet, which takes minutes; without Go the test says so."""
    cache = cache_folder()
    program = binary(cache, MINIO)
    if program.exists():
        return program
    if shutil.which("go") is None:
        reason = "MinIO is built with Go {}.{} or later: install it".format(*versions.GO)
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; with CI=true that is a failure")
        pytest.skip(reason)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "minio.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            for _ in build_alone(cache, MINIO):
                pass
    return program


@dataclass(frozen=True)
class Request:
    method: str
    key: str
    """`<bucket>/<key>`; of a listing `<bucket>?<prefix>`."""
    range: str | None
    is_conditional: bool
    """It must not replace anything."""


@dataclass
class _Held:
    method: str
    key: re.Pattern[str]
    passing: int
    """How many of them pass before."""
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    is_forgotten: bool = False


class S3Server:
    """Use it as a context. Has an empty bucket, `bucket`."""

    def __init__(self, folder: Path) -> None:
        self._program = minio_program()
        self._folder = folder
        self._user, self._password = "user-of-tests", secrets.token_hex(16)
        self._port = free_port()
        self.requests: list[Request] = []
        self.cuts: dict[str, list[int]] = {}
        """By `<bucket>/<key>`: after how many bytes each of its next answers breaks off."""
        self.bytes_per_second: float | None = None
        """At most, of an answer."""
        self.busy: list[int] = []
        """Statuses with which the next requests are answered."""
        self.lost: list[int] = []
        """The same, but they are carried out before."""
        self._held: list[_Held] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._proxy.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self._user,
            "AWS_SECRET_ACCESS_KEY": self._password,
            "AWS_REGION": "us-east-1",
        }

    def put(self, key: str, content: bytes) -> None:
        obstore.put(self._store(), key, content)

    def put_folder(self, key: str, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder)}", path.read_bytes())

    def contents(self) -> dict[str, bytes]:
        return {key: self.get(key) for key in self.listed()}

    def get(self, key: str) -> bytes:
        return bytes(obstore.get(self._store(), key).bytes())

    def delete(self, key: str) -> None:
        obstore.delete(self._store(), key)

    def listed(self, prefix: str = "") -> list[str]:
        found = [meta["path"] for chunk in obstore.list(self._store(), prefix or None) for meta in chunk]
        return sorted(found)

    def fetch_folder(self, key: str, folder: Path) -> Path:
        for name in self.listed(key):
            path = folder / name.removeprefix(f"{key}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(name))
        return folder

    def asked(self, method: str, pattern: str) -> list[Request]:
        return [one for one in self.requests if one.method == method and re.search(pattern, one.key)]

    def hold(self, method: str, pattern: str, *, passing: int = 0) -> _Held:
        """A next such request waits before it arrives, until `released`; `reached` is set when it does."""
        held = _Held(method, re.compile(pattern), passing)
        self._held.append(held)
        return held

    def forget(self, held: _Held) -> None:
        """Its request never arrives: whoever asked is dead."""
        held.is_forgotten = True
        held.released.set()

    def clear(self) -> None:
        """As it was in the beginning."""
        for key in self.listed():
            self.delete(key)
        for held in self._held:
            held.released.set()
        self._held.clear()
        self.requests.clear()
        self.cuts.clear()
        self.bytes_per_second = None
        self.busy.clear()
        self.lost.clear()

    def __enter__(self) -> "S3Server":
        data = self._folder / "data"
        data.mkdir(parents=True)
        address = f"127.0.0.1:{self._port}"
        with (self._folder / "minio.log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, "server", "--quiet", "--address", address, "--console-address", "127.0.0.1:0", data],
                env={
                    "MINIO_ROOT_USER": self._user,
                    "MINIO_ROOT_PASSWORD": self._password,
                    "MINIO_BROWSER": "off",
                    "HOME": str(self._folder),
                    "PATH": os.environ["PATH"],
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        _wait_until(lambda: self._answers(), what=(self._folder / "minio.log").read_text)
        _wait_until(self._makes_bucket, what=(self._folder / "minio.log").read_text)
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, self._port))
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for held in self._held:
            held.released.set()
        self._proxy.shutdown()
        self._proxy.server_close()
        self._process.terminate()
        self._process.wait(PATIENCE_SECONDS)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "minio.log").read_text()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            connection.request("GET", "/minio/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def _makes_bucket(self) -> bool:
        """Not at once: it answers that it is ready before it takes requests."""
        # The client makes no buckets, but it signs.
        url = obstore.sign(self._store(), "PUT", "", timedelta(minutes=1))
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=PATIENCE_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return False

    def _store(self) -> S3Store:
        """Past the proxy."""
        return S3Store(
            "bucket",
            endpoint=f"http://127.0.0.1:{self._port}",
            access_key_id=self._user,
            secret_access_key=self._password,
            region="us-east-1",
            client_options={"allow_http": True},
        )


def _wait_until(condition: Callable[[], bool], *, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _handler(s3: S3Server, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve()

        def do_HEAD(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_DELETE(self) -> None:
            self._serve()

        def _serve(self) -> None:
            key = self._note()
            for held in [one for one in s3._held if one.method == self.command and one.key.search(key)]:
                held.passing -= 1
                if held.passing == -1:
                    held.reached.set()
                    held.released.wait()
                    if held.is_forgotten:
                        self.close_connection = True
                        return
            body = self._body()
            if s3.busy:
                self._refuse(s3.busy.pop(0))
            else:
                self._forward(key, body)

        def _note(self) -> str:
            parts = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(parts.query)
            key = urllib.parse.unquote(parts.path).lstrip("/")
            if "list-type" in query:
                key = f"{key.rstrip('/')}?{query.get('prefix', [''])[0]}"
            s3.requests.append(Request(self.command, key, self.headers["Range"], "If-None-Match" in self.headers))
            return key

        def _body(self) -> bytes | None:
            length = self.headers["Content-Length"]
            return self.rfile.read(int(length)) if length else None

        def _forward(self, key: str, body: bytes | None) -> None:
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            if s3.lost:
                answer.read()
                self._refuse(s3.lost.pop(0))
                return
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            content = b"" if self.command == "HEAD" else answer.read()
            if answer.getheader("Content-Length") is None:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            cuts = s3.cuts.get(key, []) if self.command == "GET" else []
            if cuts:
                content = content[: cuts.pop(0)]
                self.close_connection = True
            # Whoever asked may have been killed.
            with contextlib.suppress(ConnectionError):
                for block in _blocks(content):
                    self.wfile.write(block)
                    if s3.bytes_per_second:
                        time.sleep(len(block) / s3.bytes_per_second)
            upstream.close()

        def _refuse(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _blocks(content: bytes) -> Iterator[bytes]:
    for position in range(0, len(content), _BLOCK_BYTES):
        yield content[position : position + _BLOCK_BYTES]
