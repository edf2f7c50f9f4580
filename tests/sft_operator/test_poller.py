"""What the poller of progress knows of a launcher that answers, and of one that doesn't."""

import asyncio
import logging
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from cluster_objects import pod, pytorch_job
from jobs import some_progress
from kubernetes.aio.client import ApiException

from sft_operator.kubernetes import progress, run
from sft_operator.kubernetes.progress import ProgressPoller
from sft_operator.kubernetes.pytorch_job import TrainerDefaults
from sft_operator.kubernetes.run import Operator, Options
from sftjob.progress import Progress


class Pods:
    """In the API server's place: answers with `progress`, or with this error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.progress: Progress | None = None
        self.error = error or ApiException(status=503)
        self.asked: list[str] = []

    async def pod_answer(self, namespace: str, pod: str, path: str, *, most_bytes: int) -> bytes:  # noqa: ARG002
        self.asked.append(pod)
        if self.progress is None:
            raise self.error
        return self.progress.to_json().encode()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_an_answer_is_heard_though_it_tells_nothing_new_and_no_answer_or_a_strangers_is_not() -> None:
    pods, running = Pods(), pod(1)
    poller = ProgressPoller(pods, None)  # type: ignore[arg-type]

    def ask() -> tuple[bool, float]:
        return asyncio.run(poller.ask("uid-1", running)), poller.heard_at("uid-1")

    assert ask() == (False, 0.0)
    pods.progress = some_progress(step=5, pod_uid="pod-1-0")
    is_new, first = ask()
    assert is_new
    assert first > 0
    is_new, second = ask()
    assert not is_new
    assert second > first
    pods.progress = None
    assert ask() == (False, second)
    pods.progress = some_progress(step=6, pod_uid="somebody")
    assert ask() == (False, second)
    poller.keep_only(set())
    assert poller.heard_at("uid-1") == 0.0


def asked_at(pods: Pods, poller: ProgressPoller, clock: Clock, *, seconds: int, running: Any) -> list[int]:
    """When a heartbeat each 5 s asks the launcher."""
    begin, times = clock.now, []
    while clock.now < begin + seconds:
        before = len(pods.asked)
        asyncio.run(poller.ask("uid-1", running))
        times += [int(clock.now - begin)] * (len(pods.asked) - before)
        clock.now += 5
    return times


def test_a_launcher_whose_network_lets_no_question_through_is_told_once_and_asked_seldom(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pods = Pods(TimeoutError())
    poller = ProgressPoller(pods, None)  # type: ignore[arg-type]
    assert asked_at(pods, poller, clock, seconds=300, running=pod(1)) == [0, 5, 10, 20, 40, 80, 140, 200, 260]
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert told.getMessage() == (
        "default/tiny-4a49acf8-a1-worker-0 runs and has told nothing for 80 s (TimeoutError()): its job shows no "
        "progress, and no progressDeadlineSeconds counts; let the operator reach port 8080 of trainer pods, if a "
        "NetworkPolicy is in the way"
    )
    # The next attempt's is asked at once, and told no more.
    assert asked_at(pods, poller, clock, seconds=100, running=pod(2)) == [0, 5, 10, 20, 40, 80]
    assert (len(caplog.records), poller.unheard()) == (1, 1)
    # Once the network is mended it is asked as often as any.
    pods.progress = some_progress(attempt=2, pod_uid="pod-2-0")
    assert asked_at(pods, poller, clock, seconds=80, running=pod(2))[-4:] == [60, 65, 70, 75]
    assert poller.unheard() == 0


def test_a_launcher_that_is_not_there_yet_takes_no_time_and_is_asked_at_each_turn(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pods = Pods(ConnectionRefusedError("refused"))
    poller = ProgressPoller(pods, None)  # type: ignore[arg-type]
    assert len(asked_at(pods, poller, clock, seconds=60, running=pod(1))) == 12
    assert caplog.records == []
    asyncio.run(poller.ask("uid-1", pod(1)))
    assert "(ConnectionRefusedError('refused'))" in caplog.text


def test_the_operator_counts_launchers_that_run_and_tell_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEARTBEAT_SECONDS", 0.0)
    pods = Pods(TimeoutError())
    poller = ProgressPoller(pods, None)  # type: ignore[arg-type]
    options = Options(TrainerDefaults(image="trainer:1"), (), "default", None)
    operator = Operator(pods, poller, options)  # type: ignore[arg-type]
    job = {"metadata": {"name": "tiny", "namespace": "default", "uid": "uid-1", "resourceVersion": "1"}}
    operator.cache.put_job(job | {"spec": {}, "status": {"phase": "Running", "attempts": {"current": 1}}})
    operator.cache.put_pytorch_job(pytorch_job(1))
    operator.cache.put_pod(pod(1, podIP="10.0.0.7"))

    async def unheard() -> str:
        beating = asyncio.create_task(operator.heartbeat())
        for _ in range(100):
            await asyncio.sleep(0)
        beating.cancel()
        page = (await operator.health.metrics(make_mocked_request("GET", "/metrics"))).body
        assert isinstance(page, bytes)
        return next(line for line in page.decode().splitlines() if line.startswith("sft_operator_launchers_unheard"))

    assert asyncio.run(unheard()) == "sft_operator_launchers_unheard 0.0"
    assert pods.asked
    clock.now += 61
    assert asyncio.run(unheard()) == "sft_operator_launchers_unheard 1.0"
    operator.cache.put_pod(pod(1, phase="Succeeded", podIP="10.0.0.7", version=2))
    assert asyncio.run(unheard()) == "sft_operator_launchers_unheard 0.0"
