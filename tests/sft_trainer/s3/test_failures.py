"""What a store answers, and what of it a place in a bucket tells: the same for every request."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sft_trainer.s3.bucket import PART_BYTES, BucketFailure, Cause, Place
from sft_trainer.s3.refusals import write_refusal
from sft_trainer.storage.records import BucketRecords
from sftjob.failure import NEVER_RETRIED, JobFailure

ANSWERS = {
    "unknown key": (403, "InvalidAccessKeyId", Cause.REFUSED),
    "wrong secret": (403, "SignatureDoesNotMatch", Cause.REFUSED),
    "no right": (403, "AccessDenied", Cause.REFUSED),
    "old token": (400, "ExpiredToken", Cause.REFUSED),
    "no bucket": (404, "NoSuchBucket", Cause.NO_BUCKET),
    "another region": (301, "PermanentRedirect", Cause.ELSEWHERE),
    "no such call": (405, "MethodNotAllowed", Cause.UNREACHABLE),
}
REQUESTS: dict[str, Callable[[Place, Path], object]] = {
    "list": lambda place, _: place.listed(),
    "folders": lambda place, _: place.folders("attempts"),
    "read": lambda place, _: place.read("key"),
    "range": lambda place, _: list(place.read_range("key", 0, 1, etag="etag")),
    "create": lambda place, _: place.create("key", b"1"),
    "replace": lambda place, _: place.replace("key", b"1"),
    "delete": lambda place, _: place.delete(["key"]),
    "upload": lambda place, large: place.upload("key", large, before_end=lambda: None),
}


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], str]]:
    """A store that answers nothing else; gives its URL."""
    servers = []

    def start(status: int, code: str) -> str:
        body = f"<Error><Code>{code}</Code></Error>".encode()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", '"1"')
                self.end_headers()
                self.wfile.write(body)

            def do_PUT(self) -> None:
                self.do_GET()

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{servers[-1].server_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "password")
        monkeypatch.setenv("AWS_REGION", "eu-central-1")
        return url

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "code", "cause"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_means_the_same_whatever_was_asked(
    answer: Callable[[int, str], str], tmp_path: Path, status: int, code: str, cause: Cause
) -> None:
    answer(status, code)
    large = tmp_path / "large"
    large.write_bytes(bytes(PART_BYTES + 1))
    found = {}
    for name, request in REQUESTS.items():
        with pytest.raises(BucketFailure) as failure:
            request(Place("s3://bucket/storage"), large)
        found[name] = failure.value.cause
    assert found == dict.fromkeys(REQUESTS, cause)


def test_a_store_that_ignores_conditions_is_refused_for_no_fence_would_hold_there(
    answer: Callable[[int, str], str],
) -> None:
    answer(200, "")
    with pytest.raises(JobFailure, match=r"s3://bucket/storage replaced an object") as refused:
        BucketRecords("s3://bucket/storage").create("attempts/1/node-0.json", "{}")
    assert refused.value.reason in NEVER_RETRIED


def test_a_bucket_of_another_region_is_told_with_the_variable_to_set(answer: Callable[[int, str], str]) -> None:
    answer(301, "PermanentRedirect")
    place = Place("s3://bucket/storage")
    with pytest.raises(BucketFailure) as failure:
        place.listed()
    assert write_refusal("spec.checkpoint.storage", place, failure.value).message == (
        "spec.checkpoint.storage: s3://bucket/storage: the bucket is not in the region eu-central-1 (redirected); set "
        "AWS_REGION to its own"
    )
