"""What the cache keeps, whoever tells it and in whatever order."""

from typing import Any

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


def test_a_job_made_again_under_its_name_inherits_nothing() -> None:
    cache = Cache()
    cache.put_job(job(version=5))
    cache.put_pytorch_job(pytorch_job(1))
    cache.put_job(job(version=6, uid="uid-2"))
    assert cache.job(KEY) == job(version=6, uid="uid-2")
    assert cache.pytorch_jobs(UID) == []
    # The late word of the old one's end is not about the new one.
    cache.drop_job(job(version=7))
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
    cache.put_pytorch_job(created)
    changed = cache.relist(
        jobs=Listing([job(version=9), job(version=1, uid="uid-4", name="missed")], 10),
        pytorch_jobs=Listing([], 10),
        pods=Listing([], 10),
    )
    assert changed == {KEY, JobKey("default", "deleted"), JobKey("default", "missed")}
    assert {key: found["metadata"]["resourceVersion"] for key, found in cache.jobs()} == {
        KEY: "9",
        JobKey("default", "missed"): "1",
    }
    assert cache.pytorch_jobs(UID) == [created]
