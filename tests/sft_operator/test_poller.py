"""What the poller of progress knows of a launcher that answers, and of one that doesn't."""

import asyncio

from cluster_objects import pod
from jobs import some_progress
from kubernetes.aio.client import ApiException

from sft_operator.kubernetes.progress import ProgressPoller
from sftjob.progress import Progress


class Pods:
    """In the API server's place: answers with `progress`, or not at all."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    async def pod_answer(self, namespace: str, pod: str, path: str, *, most_bytes: int) -> bytes:  # noqa: ARG002
        if self.progress is None:
            raise ApiException(status=503)
        return self.progress.to_json().encode()


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
