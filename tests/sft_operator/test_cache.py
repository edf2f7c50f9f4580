"""What the cache keeps, whoever tells it and in whatever order."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cluster_objects import UID, pod, pytorch_job

from sft_operator.kubernetes.api import Listing
from sft_operator.kubernetes.cache import Cache
from sft_operator.lifecycle.backend import JobKey

KEY = JobKey("default", "tiny")


def job(*, version: int = 1, uid: str = UID, name: str = "tiny") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default", "uid": uid, "resourceVersion": str(version)}}


def test_the_newest_version_wins_whoever_tells_it() -> None:
    cache = Cache()
    assert cache.put_job(job(version=5)) == KEY
    cache.put_job(job(version=4))
    assert cache.job(KEY) == job(version=5)
    assert cache.put_pod(pod(1, version=7)) == KEY
    cache.put_pod(pod(1, version=6, phase="Pending"))
    assert cache.pods(UID) == [pod(1, version=7)]


def test_what_a_list_tells_anew_is_known() -> None:
    cache = Cache()
    cache.put_job(job(version=5))
    cache.put_pytorch_job(pytorch_job(1))
    cache.put_pod(pod(1, version=7))
    assert cache.knows(job(version=5) | {"kind": "SFTJob"})
    assert not cache.knows(job(version=6) | {"kind": "SFTJob"})
    assert not cache.knows(job(version=5, uid="uid-2") | {"kind": "SFTJob"})
    assert cache.knows(pytorch_job(1) | {"kind": "PyTorchJob"})
    assert not cache.knows(pytorch_job(2) | {"kind": "PyTorchJob"})
    assert cache.knows(pod(1, version=7) | {"kind": "Pod"})
    assert not cache.knows(pod(1, version=8) | {"kind": "Pod"})


def test_a_job_made_again_under_its_name_inherits_nothing() -> None:
    cache = Cache()
    cache.put_job(job(version=5))
    cache.put_pytorch_job(pytorch_job(1))
    cache.put_job(job(version=6, uid="uid-2"))
    assert cache.job(KEY) == job(version=6, uid="uid-2")
    assert cache.pytorch_jobs(UID) == []
    # The late word of the old one's end is not about the new one, nor is the late answer to who asked for it.
    cache.drop_job(job(version=7))
    cache.put_job(job(version=5), when_asked=5)
    assert cache.job(KEY) == job(version=6, uid="uid-2")


def test_the_last_version_of_a_deleted_pod_stays_until_its_attempt_is_over() -> None:
    cache = Cache()
    cache.put_job(job())
    cache.put_pod(pod(1, version=1))
    cache.drop_pod(pod(1, phase="Failed", version=2))
    assert (cache.pods(UID), cache.gone_pods(UID)) == ([], [pod(1, phase="Failed", version=2)])
    # A watch that lags behind does not raise it from the dead.
    cache.put_pod(pod(1, version=1))
    assert cache.pods(UID) == []
    cache.forget_gone_pods(UID, before_attempt=2)
    assert cache.gone_pods(UID) == []


def test_pods_of_jobs_that_are_gone_leave_nothing_behind() -> None:
    cache = Cache()
    cache.put_pod(pod(1))
    cache.drop_pod(pod(1, version=2))
    assert (cache.pods(UID), cache.gone_pods(UID)) == ([], [])


def test_a_list_tells_what_watches_missed_and_takes_away_nothing_that_is_newer() -> None:
    cache = Cache()
    cache.put_job(job(version=1))
    cache.put_job(job(version=1, uid="uid-3", name="deleted"))
    cache.put_pytorch_job(pytorch_job(1))
    created = pytorch_job(2)
    created["metadata"]["resourceVersion"] = "12"

    async def pages(*found: dict[str, Any], told: dict[str, Any] | None = None) -> AsyncIterator[Listing]:
        """A watch tells of that PyTorchJob meanwhile."""
        if told:
            cache.put_pytorch_job(told)
        yield Listing([], 10)
        for one in found:
            yield Listing([one], 10)

    changed: set[JobKey] = set()
    asyncio.run(
        cache.relist(
            jobs=pages(job(version=9), job(version=1, uid="uid-4", name="missed")),
            pytorch_jobs=pages(told=created),
            pods=pages(),
            on_change=changed.add,
        )
    )
    assert changed == {KEY, JobKey("default", "deleted"), JobKey("default", "missed")}
    assert cache.job(KEY) == job(version=9)
    assert cache.job(JobKey("default", "missed")) == job(version=1, uid="uid-4", name="missed")
    assert cache.job(JobKey("default", "deleted")) is None
    assert cache.pytorch_jobs(UID) == [created]


def test_after_a_restore_from_a_backup_a_list_wins_though_its_versions_are_lower() -> None:
    """Etcd counts on from the backup's version; what came after that is gone, or is as it was then."""
    cache = Cache()
    cache.put_job(job(version=990))
    cache.put_job(job(version=980, uid="uid-3", name="made-since"))
    cache.put_pytorch_job(pytorch_job(1))
    known = pytorch_job(2, deleting=True)
    known["metadata"]["resourceVersion"] = "990"
    cache.put_pytorch_job(known)
    cache.put_pod(pod(2, version=985, phase="Succeeded"))
    cache.put_pod(pod(1, version=5))

    async def one_page(*found: dict[str, Any], told: dict[str, Any] | None = None) -> AsyncIterator[Listing]:
        """A watch tells of that pod meanwhile."""
        if told:
            cache.put_pod(told)
        yield Listing([*found], 905)

    changed: list[JobKey] = []
    asyncio.run(
        cache.relist(
            jobs=one_page(job(version=880)),
            pytorch_jobs=one_page(pytorch_job(1), pytorch_job(2)),
            pods=one_page(pod(2, version=870), pod(1, version=5), told=pod(1, version=906)),
            on_change=changed.append,
        )
    )
    assert cache.job(KEY) == job(version=880)
    assert cache.job(JobKey("default", "made-since")) is None
    assert cache.pytorch_jobs(UID) == [pytorch_job(1), pytorch_job(2)]
    assert sorted(cache.pods(UID), key=lambda one: one["metadata"]["name"]) == [
        pod(1, version=906),
        pod(2, version=870),
    ]
    assert {KEY, JobKey("default", "made-since")} == {*changed}


def test_what_a_list_told_before_it_broke_off_is_not_lost() -> None:
    async def broken(*found: dict[str, Any]) -> AsyncIterator[Listing]:
        yield Listing([*found], 10)
        raise TimeoutError

    cache, changed = Cache(), set[JobKey]()
    with pytest.raises(TimeoutError):
        asyncio.run(
            cache.relist(jobs=broken(job(version=9)), pytorch_jobs=broken(), pods=broken(), on_change=changed.add)
        )
    assert changed == {KEY}


@pytest.mark.parametrize("given", [{"spec": {"pytorchReplicaSpecs": {}}}, {}], ids=["no-run-policy", "no-spec"])
def test_a_stranger_s_pytorchjob_with_our_label_needs_neither_run_policy_nor_spec(given: dict[str, Any]) -> None:
    cache = Cache()
    strange = {name: value for name, value in pytorch_job(1).items() if name != "spec"} | given
    assert cache.put_pytorch_job(strange) == KEY
    assert cache.pytorch_jobs(UID) == [strange | {"spec": {"runPolicy": {}}}]


def test_what_no_pass_reads_takes_no_memory() -> None:
    cache = Cache()
    known_by = {"managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]}
    template = {"spec": {"containers": [{"name": "pytorch", "command": ["--plan", "{}"]}]}}
    one = pytorch_job(1)
    cache.put_pytorch_job(
        one
        | {
            "metadata": one["metadata"] | known_by,
            "spec": one["spec"] | {"pytorchReplicaSpecs": {"Worker": {"template": template}}},
        }
    )
    assert cache.pytorch_jobs(UID) == [one]
    other = pod(1)
    container = {"name": "pytorch", "resources": {"limits": {"memory": "1Gi"}}}
    large = {"command": ["--plan", "{}"], "env": [{"name": "A", "value": "B"}]}
    cache.put_pod(
        other | {"spec": other["spec"] | {"volumes": [{"name": "scratch"}], "containers": [container | large]}}
    )
    assert cache.pods(UID) == [other | {"spec": other["spec"] | {"containers": [container]}}]
