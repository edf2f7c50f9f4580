"""What the store makes of objects as an API server keeps them, and how often it is asked for them."""

import asyncio
import json
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import ApiException

from sft_operator.kubernetes import store as store_module
from sft_operator.kubernetes.backend import PyTorchJobBackend
from sft_operator.kubernetes.cache import Cache
from sft_operator.kubernetes.mounts import path_of
from sft_operator.kubernetes.progress import ProgressPoller
from sft_operator.kubernetes.pytorch_job import TrainerDefaults
from sft_operator.kubernetes.store import ObjectStore
from sft_operator.lifecycle.backend import Conflict, JobKey
from sft_operator.lifecycle.reconcile import reconcile
from sftjob.base import utc_now

OBJECTS = json.loads((Path(__file__).parent / "stored" / "running.json").read_text())
STORED = OBJECTS["job"]
KEY = JobKey("team", "small")


class OneJob:
    """In the API server's place: one object, and each write gives it the next version."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.looks = 0
        self.writes = 0

    async def get_job(self, key: JobKey) -> dict[str, Any]:
        assert key == KEY
        self.looks += 1
        return deepcopy(self.found)

    async def write_status(self, key: JobKey, *, resource_version: str, status: dict[str, Any]) -> dict[str, Any]:
        assert key == KEY
        metadata = self.found["metadata"]
        if resource_version != metadata["resourceVersion"]:
            raise ApiException(status=409, reason="Conflict")
        self.writes += 1
        version = str(int(metadata["resourceVersion"]) + 1)
        self.found = self.found | {"metadata": metadata | {"resourceVersion": version}, "status": deepcopy(status)}
        return deepcopy(self.found)


def a_store(api: OneJob) -> tuple[ObjectStore, Cache]:
    cache = Cache()
    cache.put_job(deepcopy(api.found))
    return ObjectStore(api, cache), cache  # type: ignore[arg-type]


def told(api: OneJob) -> dict[str, dict[str, Any]]:
    """Its conditions."""
    return {condition["type"]: condition for condition in api.found["status"]["conditions"]}


def test_a_stored_job_that_breaks_a_rule_says_one_thing_in_all_its_conditions() -> None:
    """kstatus takes one that is at work for no failure, and `kubectl wait` one of an older spec for none at all."""
    found = deepcopy(STORED)
    found["metadata"]["generation"] = 2
    found["spec"]["training"]["seed"] = "seven"
    found["status"]["queue"] = {"position": 3}
    api = OneJob(found)
    store, _ = a_store(api)
    assert asyncio.run(store.read(KEY)) is None
    status, conditions = api.found["status"], told(api)
    assert (status["observedGeneration"], status["phase"], status["queue"]) == (2, "Running", {"position": 3})
    assert {type_: condition["status"] for type_, condition in conditions.items()} == {
        "Accepted": "False",
        "Stalled": "True",
        "Reconciling": "False",
        "Running": "True",
        "CheckpointAvailable": "True",
    }
    assert {conditions[type_]["reason"] for type_ in ("Accepted", "Stalled", "Reconciling")} == {"InvalidSpec"}
    assert {condition["observedGeneration"] for condition in conditions.values()} == {2}
    assert "spec.training.seed" in conditions["Stalled"]["message"]
    assert conditions["Running"]["lastTransitionTime"] == "2026-11-26T05:21:54Z"

    assert asyncio.run(store.read(KEY)) is None
    assert api.writes == 1


def test_what_is_wrong_may_change_and_has_been_wrong_since_it_was_first_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "utc_now", lambda: datetime(2030, 1, 1, tzinfo=UTC))
    found = deepcopy(STORED)
    found["spec"]["training"]["seed"] = "seven"
    api = OneJob(found)
    store, cache = a_store(api)
    asyncio.run(store.read(KEY))
    before = told(api)
    monkeypatch.setattr(store_module, "utc_now", lambda: datetime(2031, 1, 1, tzinfo=UTC))
    api.found["metadata"] |= {"resourceVersion": "1000", "generation": 2}
    api.found["spec"]["training"]["totalStep"] = "eight"
    cache.put_job(deepcopy(api.found))
    asyncio.run(store.read(KEY))
    after = told(api)
    for type_ in ("Accepted", "Stalled", "Reconciling"):
        assert after[type_]["observedGeneration"] == 2
        assert after[type_]["lastTransitionTime"] == before[type_]["lastTransitionTime"]
        assert before[type_]["lastTransitionTime"] == "2030-01-01T00:00:00Z"
    assert "spec.training.totalStep" in after["Stalled"]["message"]


def test_a_job_that_the_api_server_has_at_a_lower_version_is_taken_as_it_is_there() -> None:
    """It was restored from a backup."""
    api = OneJob(deepcopy(STORED))
    store, cache = a_store(api)
    since = deepcopy(STORED)
    since["metadata"]["resourceVersion"] = "990"
    since["status"]["attempts"]["current"] = 2
    cache.put_job(since)
    job = asyncio.run(store.read(KEY))
    assert job is not None
    with pytest.raises(Conflict):
        asyncio.run(store.confirm(job))
    job = asyncio.run(store.read(KEY))
    assert job is not None
    assert (job.metadata.resource_version, job.status.attempts.current) == ("443", 1)
    asyncio.run(store.confirm(job))
    changed = job.model_copy(update={"status": job.status.model_copy(update={"retry_handled": "1"})})
    assert asyncio.run(store.write_status(changed)).metadata.resource_version == "444"


def test_what_a_watch_tells_while_a_job_is_looked_at_is_not_lost() -> None:
    class Slow(OneJob):
        async def get_job(self, key: JobKey) -> dict[str, Any]:
            found = await super().get_job(key)
            cache.put_job(newer)
            return found

    api = Slow(deepcopy(STORED))
    store, cache = a_store(api)
    newer = deepcopy(STORED)
    newer["metadata"]["resourceVersion"] = "450"
    job = asyncio.run(store.read(KEY))
    assert job is not None
    asyncio.run(store.confirm(job))
    assert cache.job(KEY) == newer


class WithAttempt(OneJob):
    """And its PyTorchJob; counts what is asked of it."""

    def __init__(self, found: dict[str, Any], pytorch_job: dict[str, Any]) -> None:
        super().__init__(found)
        self.pytorch_job = pytorch_job
        self.deletions = 0

    async def get_pytorch_job(self, *_: Any) -> dict[str, Any]:
        self.looks += 1
        return self.pytorch_job

    async def delete_pytorch_job(self, found: dict[str, Any]) -> None:
        assert found == self.pytorch_job
        self.deletions += 1


def later(found: dict[str, Any], *, version: str) -> dict[str, Any]:
    """As it is while it is being deleted."""
    told = {"resourceVersion": version, "deletionTimestamp": "2026-11-26T05:30:00Z"}
    return found | {"metadata": found["metadata"] | told}


def test_an_attempt_that_saves_before_its_end_costs_the_api_server_no_request() -> None:
    """A hundred jobs that were preempted together would be a hundred requests a second."""
    found = deepcopy(STORED)
    found["spec"]["runPolicy"]["suspend"] = True
    api = WithAttempt(found, OBJECTS["pytorchJob"])
    store, cache = a_store(api)
    poller, defaults = ProgressPoller(api, None), TrainerDefaults(image="trainer:1")  # type: ignore[arg-type]
    backend = PyTorchJobBackend(api, cache, poller, defaults=defaults)  # type: ignore[arg-type]
    cache.put_pytorch_job(OBJECTS["pytorchJob"])
    for pod in OBJECTS["pods"]:
        cache.put_pod(pod)

    def one_pass() -> float | None:
        return asyncio.run(reconcile(KEY, backend=backend, store=store, path_of=path_of, clock=utc_now))

    assert one_pass() == 1.0
    assert (api.found["status"]["phase"], api.writes, api.deletions) == ("Suspending", 1, 1)
    cache.put_pytorch_job(later(OBJECTS["pytorchJob"], version="1000"))
    for pod in OBJECTS["pods"]:
        cache.put_pod(later(pod, version="1000"))
    looks = api.looks
    assert [one_pass() for _ in range(10)] == [1.0] * 10
    assert (api.looks, api.writes, api.deletions) == (looks, 1, 1)
    for pod in OBJECTS["pods"]:
        cache.drop_pod(later(pod, version="1001"))
    one_pass()
    assert api.found["status"]["phase"] == "Suspended"
