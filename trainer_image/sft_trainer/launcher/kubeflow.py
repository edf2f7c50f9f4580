"""Progress of a script that isn't ours: Kubeflow's in-training status protocol (KEP-2779), served on loopback.

In come the POSTs of transformers' `KubeflowCallback`, which every unchanged `Trainer` script has by itself where
`KubeflowEndpoint.environment` is set; out goes the launcher's progress file. Opened by `attempt` while torchrun runs.
"""

import hmac
import os
import secrets
import threading
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from sft_trainer.progress import read_progress, write_progress
from sftjob.base import Record, utc_now
from sftjob.progress import Progress, Stage

_MAX_BYTES = 64 * 1024
_CLIENT_SECONDS = 5
"""For a client to send what it announced; the callback itself waits no longer for the answer."""
_STOP_SECONDS = 0.05
"""How long the end of an attempt may wait for the endpoint's thread."""


class Metric(Record):
    name: str
    value: str


class TrainerStatus(Record):
    """The protocol's `estimatedRemainingSeconds` is left out: it is wrong after a resume, see `Pace`."""

    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    metrics: list[Metric] = []
    last_updated_time: datetime | None = None


class StatusUpdate(Record):
    trainer_status: TrainerStatus


class KnownMetrics(Record):
    """Those of a `Trainer` that we show. Numbers arrive as text; a loss may be `nan`."""

    model_config = ConfigDict(allow_inf_nan=True)

    current_step: int | None = Field(default=None, ge=0)
    total_steps: int | None = Field(default=None, ge=1)
    current_epoch: float | None = None
    epoch: float | None = None
    """As of the last logged step, `current_epoch` is of this one."""
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None


class Pace:
    """Seconds until training ends, from what this attempt itself has done.

    The callback divides the time since its start by all steps, of earlier attempts too. The start's own report, at 0,
    doesn't count: after a resume it isn't where the attempt began, and the first step compiles.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def eta_seconds(self, share: float, *, now: float) -> int | None:
        """`share` of the training is done at `now` (monotonic seconds); None until two shares are known."""
        if share == 1:
            return 0
        if self._first is None and share > 0:
            self._first = (share, now)
        if self._first is None or share <= self._first[0]:
            return None
        first_share, first_now = self._first
        return round((1 - share) * (now - first_now) / (share - first_share))


def merged(progress: Progress, status: TrainerStatus, *, pace: Pace, now: float) -> Progress:
    """Steps as the metrics tell them, else from the percentage and a total told before; else the percentage as text.

    Raises ValidationError where a metric that we show is no number.
    """
    told = KnownMetrics.model_validate({metric.name: metric.value for metric in status.metrics}, extra="ignore")
    changes: dict[str, Any] = told.model_dump(
        include={"total_steps", "epoch", "loss", "learning_rate", "grad_norm"}, exclude_none=True
    )
    if told.current_epoch is not None:
        changes["epoch"] = told.current_epoch
    total, step, detail = told.total_steps or progress.total_steps, told.current_step, None
    if status.progress_percentage is not None and step is None:
        if total:
            step = status.progress_percentage * total // 100
        else:
            detail = f"{status.progress_percentage} %"
    share = None
    if step is not None and total:
        share = min(1.0, step / total)
    elif status.progress_percentage is not None:
        share = status.progress_percentage / 100
    if step is not None:
        changes["step"] = step
    if share is not None:
        changes["eta_seconds"] = pace.eta_seconds(share, now=now)
    return progress.model_copy(update={**changes, "stage": Stage.TRAINING, "detail": detail, "reported_at": utc_now()})


class KubeflowEndpoint:
    """Listens on a free port of 127.0.0.1 from its construction to the end of its `with` block."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._token = secrets.token_urlsafe()
        self._token_file = scratch / "kubeflow-token"
        self._token_file.touch(mode=0o600)
        self._token_file.write_text(self._token)
        self._pace = Pace()
        self._lock = threading.Lock()
        self._closed = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(
            target=self._server.serve_forever, args=(_STOP_SECONDS,), name="kubeflow-endpoint", daemon=True
        ).start()

    @property
    def environment(self) -> dict[str, str]:
        """Of each rank. Without a CA: the address is loopback. Without a token file the callback would send nothing."""
        return {
            "KUBEFLOW_TRAINER_SERVER_URL": f"http://127.0.0.1:{self._server.server_address[1]}/",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(self._token_file),
            **_loopback_without_proxy(),
        }

    def __enter__(self) -> "KubeflowEndpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        """From here on the progress file is the launcher's alone, also where a report is still on its way."""
        with self._lock:
            self._closed = True
        self._server.shutdown()
        self._server.server_close()
        self._token_file.unlink()

    def knows(self, authorization: str) -> bool:
        return hmac.compare_digest(authorization.encode(), f"Bearer {self._token}".encode())

    def take(self, status: TrainerStatus) -> bool:
        """False where the progress known is ahead of it; raises ValidationError like `merged`."""
        with self._lock:
            progress = read_progress(self._scratch)
            if self._closed or progress is None:
                return False
            changed = merged(progress, status, pace=self._pace, now=time.monotonic())
            return write_progress(self._scratch, changed)


def _handler(endpoint: KubeflowEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_SECONDS

        def do_POST(self) -> None:
            length = self.headers["Content-Length"]
            if not endpoint.knows(self.headers.get("Authorization", "")):
                self._answer(401, "the token is in the file that KUBEFLOW_TRAINER_SERVER_TOKEN names")
            elif length is None or not length.isdecimal():
                self._answer(411, "Content-Length is needed")
            elif int(length) > _MAX_BYTES:
                self._answer(413, f"at most {_MAX_BYTES} bytes")
            else:
                self._take(self.rfile.read(int(length)))

        def _take(self, body: bytes) -> None:
            try:
                is_taken = endpoint.take(StatusUpdate.from_json(body).trainer_status)
            except ValidationError as error:
                self._answer(422, f"not a status update of KEP-2779: {error}")
            else:
                self._answer(*((200, "taken") if is_taken else (409, "a later step is known, or training has ended")))

        def _answer(self, code: int, text: str) -> None:
            body = f"{text}\n".encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """A report every few seconds is not worth a line."""

    return Handler


def _loopback_without_proxy() -> dict[str, str]:
    """urllib, with which the callback sends, asks a proxy of the environment for 127.0.0.1 too unless told not to."""
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    return {} if direct == "*" else {"no_proxy": ",".join(filter(None, [direct, "127.0.0.1"]))}
