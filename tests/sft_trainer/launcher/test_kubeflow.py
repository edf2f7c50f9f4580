"""What a script that isn't ours reports of its progress, from transformers' own callback to `/progress`."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sft_trainer.launcher.attempt import _train
from sft_trainer.launcher.cause import Cause
from sft_trainer.launcher.children import Children
from sft_trainer.launcher.kubeflow import KubeflowEndpoint, Pace, TrainerStatus, merged
from sft_trainer.launcher.placement import Placement
from sft_trainer.launcher.serve import serve_progress
from sft_trainer.progress import ProgressReporter, read_progress, write_progress
from sft_trainer.stop import StopSignal
from sftjob.base import utc_now
from sftjob.failure import Reason
from sftjob.plan import JobReference, LaunchPlan
from sftjob.progress import Progress, Stage

SCRIPT = Path(__file__).with_name("unchanged_trainer.py")
OFTENER = """
import http.client, os, runpy, sys
from transformers.integrations.integration_utils import KubeflowCallback
KubeflowCallback._MIN_UPDATE_INTERVAL = 0  # 5 s otherwise
report = KubeflowCallback._update_status

def report_and_look(*what, **more):
    report(*what, **more)
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["PROGRESS_PORT"]), timeout=300)
    connection.request("GET", "/progress")
    print("SEEN", connection.getresponse().read().decode(), flush=True)

KubeflowCallback._update_status = report_and_look
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
STARTING = Progress(attempt=1, stage=Stage.STARTING, reported_at=utc_now())
A_PLAN = {
    "model": {"loadFrom": {"uri": "pvc://models/base"}},
    "data": {"datasets": [{"name": "chats", "uri": "pvc://data/chats.jsonl"}]},
    "output": [{"uri": "pvc://models/tuned"}],
}


class ScriptForTorchrun(Children):
    """Prepares nothing, and runs the script with what torchrun would pass on to its ranks."""

    printed = ""

    def run(self, module: str, *_: Any, environment: Mapping[str, str], **_more: Any) -> int:
        if module != "sft_trainer.launcher.torchrun":
            return 0
        command = [sys.executable, "-c", OFTENER, str(SCRIPT), str(self._temporary / "trained")]
        done = subprocess.run(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.printed = done.stdout
        return done.returncode


@pytest.fixture
def children(tmp_path: Path) -> Iterator[ScriptForTorchrun]:
    before = signal.getsignal(signal.SIGTERM)
    yield ScriptForTorchrun(grace_seconds=30, scratch=tmp_path, stop=StopSignal())
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    write_progress(tmp_path, STARTING)
    return tmp_path


@pytest.fixture
def endpoint(scratch: Path) -> Iterator[KubeflowEndpoint]:
    with KubeflowEndpoint(scratch) as endpoint:
        yield endpoint


def post(
    endpoint: KubeflowEndpoint, body: str, *, token: str | None = None, headers: Mapping[str, str] | None = None
) -> int:
    """As the callback does, with the token of the file unless another is given; returns the status."""
    url = endpoint.environment["KUBEFLOW_TRAINER_SERVER_URL"]
    token = token or Path(endpoint.environment["KUBEFLOW_TRAINER_SERVER_TOKEN"]).read_text()
    connection = http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/"), timeout=300)
    with contextlib.closing(connection):
        connection.request("POST", "/", body=body, headers={"Authorization": f"Bearer {token}", **(headers or {})})
        return connection.getresponse().status


def update(*, percentage: int | None = None, **metrics: str) -> str:
    listed = [{"name": name, "value": value} for name, value in metrics.items()]
    status = {"metrics": listed, "lastUpdatedTime": "2026-01-01T12:00:00.123456+00:00"}
    return json.dumps({"trainerStatus": status | ({} if percentage is None else {"progressPercentage": percentage})})


def test_an_unchanged_trainer_script_is_followed_step_by_step(
    scratch: Path, children: ScriptForTorchrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reports must not go through a proxy that knows nothing of this loopback.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = serve_progress(scratch, address="127.0.0.1:0")
    placement = Placement(
        node_rank=0,
        master_address="127.0.0.1",
        master_port=1,
        scratch=scratch,
        termination_message=scratch / "message",
        serve_address="127.0.0.1:0",
        pod_uid=None,
    )
    job = JobReference(namespace="default", name="script", uid="uid-1")
    mounts = [{"uri": "pvc://models/tuned.checkpoints", "path": str(scratch / "storage")}]
    plan = LaunchPlan.model_validate({"job": job, "attempt": 1, "spec": A_PLAN, "mounts": mounts})
    monkeypatch.setenv("PROGRESS_PORT", str(server.server_address[1]))
    try:
        cause = _train(plan, placement, children)
    finally:
        server.shutdown()
        server.server_close()
    assert cause == Cause(Reason.SUCCEEDED, ""), children.printed

    lines = [line for line in children.printed.splitlines() if line.startswith("SEEN ")]
    seen = [json.loads(line.removeprefix("SEEN ")) for line in lines]
    training = [progress for progress in seen if progress["stage"] == "Training"]
    steps = [progress["step"] for progress in training]
    assert steps == sorted(steps)
    assert len(set(steps)) > 5
    assert {progress["totalSteps"] for progress in training} == {20}
    assert len({progress["loss"] for progress in training if "loss" in progress}) > 5
    *_, last_step, _summary = json.loads(children.printed.split("LOGGED ")[1])
    last = read_progress(scratch)
    assert last is not None
    assert (last.stage, last.step, last.eta_seconds) == (Stage.TRAINING, 20, 0)
    assert (last.loss, last.learning_rate, last.grad_norm, last.epoch) == tuple(
        last_step[name] for name in ("loss", "learning_rate", "grad_norm", "epoch")
    )
    assert not (scratch / "kubeflow-token").exists()


@pytest.mark.parametrize(
    ("before", "percentage", "metrics", "changes"),
    [
        ({}, 0, {"total_steps": "40"}, {"total_steps": 40}),
        (
            {"total_steps": 40},
            25,
            {
                "current_step": "11",
                "total_steps": "40",
                "loss": "1.5",
                "learning_rate": "1e-05",
                "grad_norm": "0.25",
                "epoch": "0.5",
                "current_epoch": "0.55",
                "eval_loss": "not ours",
            },
            {"step": 11, "loss": 1.5, "learning_rate": 1e-5, "grad_norm": 0.25, "epoch": 0.55},
        ),
        ({"total_steps": 40, "step": 39}, 100, {"epoch": "1.0"}, {"step": 40, "epoch": 1.0, "eta_seconds": 0}),
        ({}, 42, {}, {"detail": "42 %"}),
        ({"detail": "41 %", "loss": 2.0}, None, {"loss": "1.0"}, {"detail": None, "loss": 1.0}),
    ],
)
def test_what_is_reported_becomes_progress(
    before: dict[str, Any], percentage: int | None, metrics: dict[str, str], changes: dict[str, Any]
) -> None:
    progress = STARTING.model_copy(update=before)
    status = TrainerStatus.model_validate(
        {
            "progressPercentage": percentage,
            "metrics": [{"name": name, "value": value} for name, value in metrics.items()],
        }
    )
    result = merged(progress, status, pace=Pace(), now=0.0)
    expected = progress.model_copy(update={**changes, "stage": Stage.TRAINING})
    assert result.model_copy(update={"reported_at": progress.reported_at}) == expected


def test_the_eta_of_a_resumed_run_counts_this_attempt_s_steps_only() -> None:
    pace = Pace()
    shares = [(0.0, 100.0), (0.50, 130.0), (0.50, 131.0), (0.60, 150.0), (1.0, 230.0)]
    assert [pace.eta_seconds(share, now=now) for share, now in shares] == [None, None, None, 80, 0]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("", {"Content-Length": "65537"}, 413),
        ("", {"Content-Length": "-1"}, 411),
        ("", {"Content-Length": "many"}, 411),
        ("step 3", {}, 422),
        ("{}", {}, 422),
        ('{"trainerStatus": {"metrics": [{"name": "loss", "value": 1.5}]}}', {}, 422),
        (update(loss="low"), {}, 422),
        (update(current_step="-1"), {}, 422),
        (update(percentage=101), {}, 422),
        ('{"trainerStatus": {"lastUpdatedTime": "noon"}}', {}, 422),
    ],
)
def test_anything_else_than_a_status_update_is_refused_and_changes_nothing(
    endpoint: KubeflowEndpoint, scratch: Path, body: str, headers: dict[str, str], status: int
) -> None:
    assert post(endpoint, body, headers=headers) == status
    assert read_progress(scratch) == STARTING


def test_nobody_without_the_token_of_this_attempt_reports(endpoint: KubeflowEndpoint, scratch: Path) -> None:
    assert post(endpoint, update(current_step="3"), token="guessed") == 401
    assert post(endpoint, update(current_step="3"), headers={"Authorization": ""}) == 401
    assert read_progress(scratch) == STARTING
    file = Path(endpoint.environment["KUBEFLOW_TRAINER_SERVER_TOKEN"])
    assert file.stat().st_mode & 0o077 == 0
    assert len(file.read_text()) >= 32


def test_the_largest_update_of_the_protocol_is_taken(endpoint: KubeflowEndpoint, scratch: Path) -> None:
    body = update(current_step="3", note="x" * (64 * 1024 - len(update(current_step="3", note=""))))
    assert len(body) == 65536
    assert post(endpoint, body) == 200
    assert (progress := read_progress(scratch))
    assert progress.step == 3


def test_a_falling_step_is_dropped_whoever_tells_it_and_the_last_writer_wins_otherwise(
    endpoint: KubeflowEndpoint, scratch: Path
) -> None:
    trainer = ProgressReporter(scratch)
    trainer.report(step=5, stage=Stage.SAVING, detail="step-5")
    trainer.close()
    assert post(endpoint, update(current_step="4", loss="9.0")) == 409
    assert (progress := read_progress(scratch))
    assert (progress.step, progress.stage, progress.loss) == (5, Stage.SAVING, None)
    assert post(endpoint, update(current_step="5", loss="1.0")) == 200
    assert (progress := read_progress(scratch))
    assert (progress.step, progress.stage, progress.detail, progress.loss) == (5, Stage.TRAINING, None, 1.0)
    assert not write_progress(scratch, progress.model_copy(update={"step": 4}))
    assert write_progress(scratch, progress.model_copy(update={"step": 0, "attempt": 2}))


def test_a_rank_and_the_endpoint_may_write_at_once(endpoint: KubeflowEndpoint, scratch: Path) -> None:
    stop = threading.Event()

    def write_without_pause() -> None:
        while not stop.is_set():
            write_progress(scratch, STARTING.model_copy(update={"step": 3}))

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write_without_pause)
        try:
            statuses = {post(endpoint, update(current_step="3")) for _ in range(100)}
        finally:
            stop.set()
        writing.result()
    assert statuses == {200}
    assert [path.name for path in scratch.glob("progress*")] == ["progress.json"]


def test_after_its_end_nothing_is_taken_any_more(scratch: Path) -> None:
    with KubeflowEndpoint(scratch) as endpoint:
        url = endpoint.environment["KUBEFLOW_TRAINER_SERVER_URL"]
    late = TrainerStatus.model_validate({"metrics": [{"name": "current_step", "value": "3"}]})
    assert not endpoint.take(late)
    connection = http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/"), timeout=300)
    with pytest.raises(ConnectionRefusedError):
        connection.request("POST", "/")
    assert read_progress(scratch) == STARTING


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ({}, "127.0.0.1"),
        ({"NO_PROXY": ".cluster.local"}, ".cluster.local,127.0.0.1"),
        ({"NO_PROXY": "a", "no_proxy": "b"}, "b,127.0.0.1"),
        ({"no_proxy": "*"}, None),
    ],
)
def test_what_the_user_exempts_from_a_proxy_stays_exempt(
    endpoint: KubeflowEndpoint, monkeypatch: pytest.MonkeyPatch, before: dict[str, str], expected: str | None
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    assert endpoint.environment.get("no_proxy") == expected
