"""A Hugging Face hub on 127.0.0.1: the routes for looking up, listing and downloading, as the real client asks them.

Large files are, as on the real one, redirected to another host: here another port, where no token may arrive. What was
asked is written down; connections can be cut or held, and revisions moved.
"""

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE_BYTES = 1 << 16
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree|paths-info)/([^/]+)(?:/(.+))?")
_FILE = re.compile(r"(/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """Of a file in its repository; of all else the URL's."""
    range: str | None
    authorization: str | None
    is_elsewhere: bool
    """It came to the host of large files."""
    is_file: bool


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Content by path, by commit."""
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    """Without it the repository is not there."""
    is_gated: bool = False
    """What it holds is seen, but not given, without `token`."""

    def commit(self, files: dict[str, bytes], *, ref: str = "main") -> str:
        listed = "".join(f"{path}{hashlib.sha256(content).hexdigest()}" for path, content in sorted(files.items()))
        sha = hashlib.sha1(listed.encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha


class HubServer:
    """Use it as a context."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        """By `models/<owner>/<name>` and `datasets/<owner>/<name>`."""
        self.requests: list[Request] = []
        self.cuts: dict[str, list[int]] = {}
        """By a file's path: after how many bytes each of its next answers breaks off."""
        self.held: dict[str, int] = {}
        """By a file's path: after how many bytes an answer stops until `release`."""
        self.changes: dict[str, Callable[[bytes], bytes]] = {}
        """By a file's path: what a bad mirror makes of it."""
        self.busy: list[int] = []
        """Statuses with which the next questions are answered."""
        self._released = threading.Event()
        self._servers = [_server(self, is_elsewhere=False), _server(self, is_elsewhere=True)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def elsewhere(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def model(self, name: str) -> Repository:
        return self.repositories.setdefault(f"models/{name}", Repository())

    def dataset(self, name: str) -> Repository:
        return self.repositories.setdefault(f"datasets/{name}", Repository())

    def files_asked(self) -> list[str]:
        """Each answered download, redirects left out."""
        return [one.path for one in self.requests if one.is_file and one.method == "GET"]

    def release(self) -> None:
        self.held.clear()
        self._released.set()

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
        for server in self._servers:
            server.shutdown()
            server.server_close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _server(hub: HubServer, *, is_elsewhere: bool) -> ThreadingHTTPServer:
    class Handler(_Handler):
        pass

    Handler.hub, Handler.is_elsewhere = hub, is_elsewhere
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    is_elsewhere: bool
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if match := _FILE.fullmatch(path):
            self._file(*match.groups())
        else:
            self._question(b"")

    def do_POST(self) -> None:
        self._question(self.rfile.read(int(self.headers["Content-Length"])))

    def _question(self, body: bytes) -> None:
        # The revision is quoted: its slashes are no parts of the path.
        match = _API.fullmatch(urllib.parse.urlsplit(self.path).path)
        self._note(self.path, is_file=False)
        if self.hub.busy:
            return self._refuse(self.hub.busy.pop(0), "", "busy")
        if match is None:
            return self._refuse(404, "", "no such route")
        kind, name, what, revision, inner = match.groups()
        found = self._commit(f"{kind}/{name}", urllib.parse.unquote(revision))
        if found is None:
            return None
        sha, files = found
        if what == "revision":
            return self._json({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]})
        if what == "tree":
            folder = urllib.parse.unquote(inner or "")
            is_recursive = "recursive=true" in urllib.parse.urlsplit(self.path).query.lower()
            return self._json(_listed(files, folder, is_recursive=is_recursive))
        wanted = urllib.parse.parse_qs(body.decode())["paths"]
        entries = [entry for path in wanted for entry in _listed(files, str(Path(path).parent).removeprefix("."))]
        return self._json([entry for entry in entries if entry["path"] in wanted])

    def _file(self, datasets: str | None, name: str, revision: str, path: str) -> None:
        repository = f"{'datasets' if datasets else 'models'}/{name}"
        if self.is_elsewhere:
            content = self.hub.repositories[repository].commits[revision][path]
            self._note(path, is_file=True)
            return self._send(path, content)
        found = self._commit(repository, revision, gives_content=True)
        if found is None:
            return None
        sha, files = found
        if path not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if len(files[path]) < LARGE_BYTES:
            self._note(path, is_file=True)
            return self._send(path, files[path], sha=sha)
        self._note(path, is_file=False)
        self.send_response(302)
        self.send_header(
            "Location", f"{self.hub.elsewhere}/{'datasets/' if datasets else ''}{name}/resolve/{sha}/{path}"
        )
        self.send_header("X-Repo-Commit", sha)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(files[path]).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(files[path])))
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def _commit(self, name: str, revision: str, *, gives_content: bool = False) -> tuple[str, dict[str, bytes]] | None:
        """Answers with the refusal where there is none."""
        repository = self.hub.repositories.get(name)
        may = repository is not None and (
            repository.token is None or self.headers["Authorization"] == f"Bearer {repository.token}"
        )
        if repository is None or (not may and not repository.is_gated):
            return self._refuse(404 if repository is None else 401, "RepoNotFound", "Repository not found")
        if not may and gives_content:
            return self._refuse(403, "GatedRepo", f"Access to {name} is restricted")
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repository.commits[sha]

    def _send(self, path: str, content: bytes, *, sha: str | None = None) -> None:
        content = self.hub.changes.get(path, bytes)(content)
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if sha:
            self.send_header("X-Repo-Commit", sha)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cuts = self.hub.cuts.get(path, [])
        end = start + cuts.pop(0) if cuts else len(content)
        for position in range(start, min(end, len(content)), _BLOCK_BYTES):
            if position - start >= self.hub.held.get(path, len(content)):
                self.hub._released.wait()
            self.wfile.write(content[position : min(position + _BLOCK_BYTES, end)])
        self.close_connection = end < len(content)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _note(self, path: str, *, is_file: bool) -> None:
        headers = self.headers
        self.hub.requests.append(
            Request(self.command, path, headers["Range"], headers["Authorization"], self.is_elsewhere, is_file)
        )

    def log_message(self, *_: object) -> None:
        pass


def _listed(files: dict[str, bytes], folder: str, *, is_recursive: bool = False) -> list[dict[str, object]]:
    """What lies in a folder: directly, or all of it."""
    entries: dict[str, dict[str, object]] = {}
    prefix = f"{folder}/" if folder else ""
    for path, content in files.items():
        if not path.startswith(prefix):
            continue
        folders = path.removeprefix(prefix).split("/")[:-1]
        for depth in range(1, len(folders) + 1 if is_recursive else min(len(folders), 1) + 1):
            inner = "/".join(folders[:depth])
            entries[inner] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": prefix + inner}
        if folders and not is_recursive:
            continue
        entry = {"type": "file", "oid": _git_id(content), "size": len(content), "path": path}
        if len(content) >= LARGE_BYTES:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entries[path.removeprefix(prefix)] = entry
    return list(entries.values())


def _git_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
