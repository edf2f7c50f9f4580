"""What the operator knows of the cluster: filled by watches, lists and its own writes; read by every pass.

Pods that are gone stay until their attempt is over, for what they said last. A version that is older than the one
known is dropped, so that whoever tells it, the newest wins.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from sft_operator.kubernetes.api import Listing, Object
from sft_operator.lifecycle.backend import JobKey
from sftjob import names


@dataclass
class _Children:
    pytorch_jobs: dict[str, Object] = field(default_factory=dict)
    pods: dict[str, Object] = field(default_factory=dict)
    """Both by uid."""
    gone_pods: dict[str, Object] = field(default_factory=dict)


class Cache:
    def __init__(self) -> None:
        self._jobs: dict[JobKey, Object] = {}
        self._children: dict[str, _Children] = {}
        """By the job's uid."""

    def job(self, key: JobKey) -> Object | None:
        return self._jobs.get(key)

    def jobs(self) -> Iterator[tuple[JobKey, Object]]:
        yield from list(self._jobs.items())

    def pytorch_jobs(self, uid: str) -> list[Object]:
        return list(self._children[uid].pytorch_jobs.values()) if uid in self._children else []

    def pods(self, uid: str) -> list[Object]:
        return list(self._children[uid].pods.values()) if uid in self._children else []

    def gone_pods(self, uid: str) -> list[Object]:
        return list(self._children[uid].gone_pods.values()) if uid in self._children else []

    def put_job(self, found: Object) -> JobKey:
        key = key_of(found)
        before = self._jobs.get(key)
        if before is None or before["metadata"]["uid"] != found["metadata"]["uid"]:
            if before is not None:
                self._children.pop(before["metadata"]["uid"], None)
            self._jobs[key] = found
        elif _version(found) >= _version(before):
            self._jobs[key] = found
        return key

    def drop_job(self, gone: Object) -> JobKey:
        key = key_of(gone)
        before = self._jobs.get(key)
        if before is not None and before["metadata"]["uid"] == gone["metadata"]["uid"]:
            del self._jobs[key]
            self._children.pop(gone["metadata"]["uid"], None)
        return key

    def put_pytorch_job(self, found: Object) -> JobKey:
        return self._put(self._of(found).pytorch_jobs, found)

    def drop_pytorch_job(self, gone: Object) -> JobKey:
        self._of(gone).pytorch_jobs.pop(gone["metadata"]["uid"], None)
        return self._tidied(gone)

    def put_pod(self, found: Object) -> JobKey:
        children = self._of(found)
        if found["metadata"]["uid"] in children.gone_pods:
            return owner_key(found)
        return self._put(children.pods, found)

    def drop_pod(self, gone: Object) -> JobKey:
        """The last version of a pod tells how its container ended; a watch that missed it leaves what was known."""
        children = self._of(gone)
        known = children.pods.pop(gone["metadata"]["uid"], None)
        last = known if known is not None and _version(known) > _version(gone) else gone
        children.gone_pods.setdefault(gone["metadata"]["uid"], last)
        return self._tidied(gone)

    def forget_gone_pods(self, uid: str, *, before_attempt: int) -> None:
        gone = self._children[uid].gone_pods if uid in self._children else {}
        for pod in list(gone.values()):
            if attempt_of(pod) < before_attempt:
                del gone[pod["metadata"]["uid"]]

    def relist(self, *, jobs: Listing, pytorch_jobs: Listing, pods: Listing) -> set[JobKey]:
        """What isn't listed, and isn't newer than the list, is gone. Returns the keys of what changed."""
        changed = set()
        for listing, known, put, drop in (
            (jobs, [job for _, job in self.jobs()], self.put_job, self.drop_job),
            (pytorch_jobs, self._all("pytorch_jobs"), self.put_pytorch_job, self.drop_pytorch_job),
            (pods, self._all("pods"), self.put_pod, self.drop_pod),
        ):
            versions = {found["metadata"]["uid"]: _version(found) for found in known}
            uids = {found["metadata"]["uid"] for found in listing.items}
            for found in listing.items:
                if versions.get(found["metadata"]["uid"], -1) < _version(found):
                    changed.add(put(found))
            for found in known:
                if found["metadata"]["uid"] not in uids and _version(found) <= listing.version:
                    changed.add(drop(found))
        return changed

    def _tidied(self, gone: Object) -> JobKey:
        """The last child of a job that is gone takes the rest with it."""
        key, uid = owner_key(gone), gone["metadata"]["labels"][names.JOB_UID_LABEL]
        job, children = self._jobs.get(key), self._children[uid]
        if (job is None or job["metadata"]["uid"] != uid) and not children.pods and not children.pytorch_jobs:
            del self._children[uid]
        return key

    def _all(self, kind: str) -> list[Object]:
        return [found for children in self._children.values() for found in getattr(children, kind).values()]

    def _of(self, child: Object) -> _Children:
        return self._children.setdefault(child["metadata"]["labels"][names.JOB_UID_LABEL], _Children())

    def _put(self, known: dict[str, Object], found: Object) -> JobKey:
        uid = found["metadata"]["uid"]
        if uid not in known or _version(found) >= _version(known[uid]):
            known[uid] = found
        return owner_key(found)


def key_of(job: Object) -> JobKey:
    return JobKey(job["metadata"]["namespace"], job["metadata"]["name"])


def owner_key(child: Object) -> JobKey:
    return JobKey(child["metadata"]["namespace"], child["metadata"]["labels"].get(names.JOB_LABEL, ""))


def attempt_of(child: Object) -> int:
    """-1 where the label isn't ours."""
    label = child["metadata"]["labels"].get(names.ATTEMPT_LABEL, "")
    return int(label) if label.isdecimal() else -1


def _version(found: Object) -> int:
    """The API server compares these as integers too, from 1.35 on by its own contract."""
    return int(found["metadata"]["resourceVersion"])
