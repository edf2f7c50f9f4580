"""One place in a bucket: its objects read, listed, written and deleted by keys below it.

In: an `s3://` URI; credentials, endpoint and region from the AWS variables of the environment. Whatever goes wrong is
one BucketFailure; what it means for the job is told by `refusals`. No torch: the launcher imports it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import obstore
from obstore import exceptions
from obstore.store import S3Store

from sftjob.names import S3

PART_BYTES = 16 << 20
_MOST_PARTS = 9_000
"""A store takes 10,000 of an object."""
_BLOCK_BYTES = 1 << 20
_REQUEST_SECONDS = 60
_UPLOAD_SECONDS = 300
_PARTS_AT_ONCE = 4
"""They share the way up: each must arrive within an upload's time, which these do at 0.23 MB/s."""
_RETRIES = 3
_RETRY_SECONDS = 60
_ASKS_THE_MACHINE = "/latest/api/token"
"""Of a cloud's machine: what the client asks for credentials where the environment has none."""
_IN_ANOTHER_REGION = "incorrectly configured region"
_INVALID_PATH = "object with invalid path"
"""Of a key that the client takes for no path, as one with an empty part (`a//b`) or a line break."""
_BAD_CREDENTIALS = ("ExpiredToken", "InvalidToken")
_STATUS = re.compile(r"\bstatus: (\d{3})\b")
_CODE = re.compile(r"<Code>(\w+)</Code>")


class Cause(StrEnum):
    MISSING = "missing"
    NO_BUCKET = "no bucket"
    CHANGED = "changed"
    REFUSED = "refused"
    ELSEWHERE = "in another region"
    UNREADABLE_KEY = "a key that can't be read"
    UNREACHABLE = "unreachable"


class BucketFailure(Exception):
    def __init__(self, cause: Cause, said: str) -> None:
        super().__init__(said)
        self.cause = cause
        self.said = said
        """By the store or the way to it, in one line."""


@dataclass(frozen=True)
class Listed:
    path: str
    """Below the place; empty where the place is an object itself."""
    size: int
    etag: str


class Place:
    """Keys are below the URI. Every method raises BucketFailure."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.bucket, _, self.prefix = self.uri.removeprefix(S3).partition("/")
        self._store = _store(self.bucket, request_seconds=_REQUEST_SECONDS)

    @cached_property
    def _up(self) -> S3Store:
        return _store(self.bucket, request_seconds=_UPLOAD_SECONDS)

    def read(self, key: str) -> bytes | None:
        """None where there is no such object."""
        with _failures():
            try:
                return bytes(obstore.get(self._store, self._key(key)).bytes())
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return None

    def read_range(self, path: str, start: int, end: int, *, etag: str) -> Iterator[bytes]:
        """Of an object that is listed, as it arrives; CHANGED where it is another one by now."""
        with _failures():
            asked = {"range": (start, end), "if_match": etag}
            for block in obstore.get(self._store, self._key(path), options=asked).stream(min_chunk_size=_BLOCK_BYTES):
                yield bytes(block)

    def create(self, key: str, content: bytes) -> bool:
        """False where something else lies there; the content must be the writer's own.

        An answer can be lost, and the request repeated: what lies there may be ours.
        """
        with _failures():
            try:
                obstore.put(self._store, self._key(key), content, mode="create")
            except exceptions.AlreadyExistsError:
                return self.read(key) == content
        return True

    def replace(self, key: str, content: bytes) -> None:
        with _failures():
            obstore.put(self._store, self._key(key), content)

    def upload(
        self,
        key: str,
        file: Path,
        *,
        before_part: Callable[[int], None] = lambda _: None,
        before_end: Callable[[], None],
    ) -> None:
        """`before_part` is called with the bytes that went before; `before_end` when all has been sent, of a large file
        with its last parts on their way, before the request that makes the object appear."""
        with _failures(), file.open("rb") as opened:
            if file.stat().st_size <= PART_BYTES:
                before_part(0)
                content = opened.read()
                before_end()
                obstore.put(self._up, self._key(key), content, use_multipart=False)
                return
            part_bytes = max(PART_BYTES, file.stat().st_size // _MOST_PARTS)
            writer = obstore.open_writer(
                self._up, self._key(key), buffer_size=part_bytes, max_concurrency=_PARTS_AT_ONCE
            )
            while block := opened.read(part_bytes):
                before_part(opened.tell() - len(block))
                writer.write(block)
            before_end()
            writer.close()

    def listed(self, below: str = "") -> list[Listed]:
        """All objects below a key of the place, or the object that the place itself is."""
        whole, found = self._key(below), []
        with _failures():
            for chunk in obstore.list(self._store, whole):
                found += [
                    Listed(meta["path"].removeprefix(f"{self.prefix}/"), meta["size"], meta["e_tag"] or "")
                    for meta in chunk
                    # Consoles make empty objects that stand for folders.
                    if meta["path"] != whole
                ]
            if not found and not below:
                found += self._itself()
        return sorted(found, key=lambda one: one.path)

    def folders(self, below: str) -> list[str]:
        """Names of what is directly below a key and has keys below it."""
        with _failures():
            found = obstore.list_with_delimiter(self._store, self._key(below))
        return [prefix.rpartition("/")[2] for prefix in found["common_prefixes"]]

    def delete(self, keys: Sequence[str]) -> None:
        """Those that are there."""
        if not keys:
            return
        with _failures():
            obstore.delete(self._store, [self._key(key) for key in keys])

    def _itself(self) -> Iterator[Listed]:
        try:
            meta = obstore.head(self._store, self.prefix)
        except FileNotFoundError:
            return
        yield Listed("", meta["size"], meta["e_tag"] or "")

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}".rstrip("/")


def _store(bucket: str, *, request_seconds: int) -> S3Store:
    return S3Store(
        bucket,
        client_options={"allow_http": True, "timeout": timedelta(seconds=request_seconds)},
        retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
    )


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (exceptions.BaseError, FileNotFoundError) as error:
        raise BucketFailure(_cause(error), _said(error)) from error


def _cause(error: Exception) -> Cause:
    match error:
        case _ if _code(error) == "NoSuchBucket":
            return Cause.NO_BUCKET
        case FileNotFoundError():
            return Cause.MISSING
        case exceptions.PreconditionError():
            return Cause.CHANGED
        # By its status too: of a listing every refusal is a GenericError.
        case _ if _status(error) in ("401", "403") or _code(error) in _BAD_CREDENTIALS:
            return Cause.REFUSED
        case _ if _ASKS_THE_MACHINE in str(error):
            return Cause.REFUSED
        case _ if _IN_ANOTHER_REGION in str(error):
            return Cause.ELSEWHERE
        case _ if _INVALID_PATH in str(error):
            return Cause.UNREADABLE_KEY
        case _:
            return Cause.UNREACHABLE


def _code(error: Exception) -> str | None:
    match = _CODE.search(str(error))
    return match[1] if match else None


def _status(error: Exception) -> str | None:
    match = _STATUS.search(str(error))
    return match[1] if match else None


def _said(error: Exception) -> str:
    if _IN_ANOTHER_REGION in str(error):
        return "redirected"
    if _ASKS_THE_MACHINE in str(error):
        return "no credentials in the environment, and none of this machine's"
    return _code(error) or " ".join(str(error).partition("\n")[0].split())[:200]
