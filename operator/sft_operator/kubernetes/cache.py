"""What the operator knows of the cluster: filled by watches, lists and its own writes; read by every pass.

Pods that are gone stay until their attempt is over, for what they said last. A version that is older than the one
known is dropped, so that whoever tells it, the newest wins. Except that an answer is newer than what was known when it
was asked for, whatever its version: an API server that was restored from a backup counts on from a lower one.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from sft_operator.kubernetes import packed
from sft_operator.kubernetes.api import Listing, Object
from sft_operator.kubernetes.packed import Packed, version_of
from sft_operator.lifecycle.backend import JobKey
from sftjob import names
from sftjob.status import Phase


@dataclass(slots=True)
class _Children:
    pytorch_jobs: dict[str, Packed] = field(default_factory=dict)
    pods: dict[str, Packed] = field(default_factory=dict)
    """Both by uid."""
    gone_pods: dict[str, Packed] = field(default_factory=dict)


class Cache:
    def __init__(self) -> None:
        self._jobs: dict[JobKey, Packed] = {}
        self._children: dict[str, _Children] = {}
        """By the job's uid."""

    def job(self, key: JobKey) -> Object | None:
        return self._jobs[key].unpacked() if key in self._jobs else None

    def unfinished_jobs(self) -> dict[JobKey, str | None]:
        """Their phases; None before the first is written."""
        phases = {key: job.phase for key, job in self._jobs.items()}
        return {key: phase for key, phase in phases.items() if phase not in (Phase.SUCCEEDED, Phase.FAILED)}

    def job_uids(self) -> set[str]:
        return {job.uid for job in self._jobs.values()}

    def job_phases(self) -> Counter[str]:
        return Counter(job.phase or Phase.PENDING for job in self._jobs.values())

    def pytorch_jobs(self, uid: str) -> list[Object]:
        return _unpacked(self._children[uid].pytorch_jobs) if uid in self._children else []

    def pods(self, uid: str) -> list[Object]:
        return _unpacked(self._children[uid].pods) if uid in self._children else []

    def gone_pods(self, uid: str) -> list[Object]:
        return _unpacked(self._children[uid].gone_pods) if uid in self._children else []

    def knows(self, found: Object) -> bool:
        """Of whatever kind, at this version or a newer one."""
        uid = found["metadata"]["uid"]
        if found["kind"] == names.KIND:
            known = self._jobs.get(key_of(found))
        else:
            children = self._of(found)
            known = (children.pytorch_jobs if found["kind"] == "PyTorchJob" else children.pods).get(uid)
        return known is not None and known.uid == uid and known.version >= version_of(found)

    def put_job(self, found: Object, *, when_asked: int | None = None) -> JobKey:
        """`when_asked`: the version that was known when it was asked for."""
        key = key_of(found)
        before = self._jobs.get(key)
        is_other = before is not None and before.uid != found["metadata"]["uid"]
        # A watch tells of objects in their order. The answer to a question may be of one that was deleted meanwhile.
        if (is_other and when_asked is None) or _is_newer(found, before, when_asked):
            if before is not None and is_other:
                self._children.pop(before.uid, None)
            self._jobs[key] = Packed.of(found, packed.job)
        return key

    def drop_job(self, gone: Object) -> JobKey:
        key = key_of(gone)
        before = self._jobs.get(key)
        if before is not None and before.uid == gone["metadata"]["uid"]:
            del self._jobs[key]
            self._children.pop(before.uid, None)
        return key

    def put_pytorch_job(self, found: Object, *, when_asked: int | None = None) -> JobKey:
        known, uid = self._of(found).pytorch_jobs, found["metadata"]["uid"]
        if _is_newer(found, known.get(uid), when_asked):
            known[uid] = Packed.of(found, packed.pytorch_job)
        return owner_key(found)

    def drop_pytorch_job(self, gone: Object) -> JobKey:
        self._of(gone).pytorch_jobs.pop(gone["metadata"]["uid"], None)
        return self._tidied(gone)

    def put_pod(self, found: Object, *, when_asked: int | None = None) -> JobKey:
        children, uid = self._of(found), found["metadata"]["uid"]
        if _is_newer(found, children.pods.get(uid), when_asked) and uid not in children.gone_pods:
            children.pods[uid] = Packed.of(found, packed.pod)
        return owner_key(found)

    def drop_pod(self, gone: Object) -> JobKey:
        """The last version of a pod tells how its container ended; a watch that missed it leaves what was known."""
        children, last = self._of(gone), Packed.of(gone, packed.pod)
        known = children.pods.pop(last.uid, None)
        if known is not None and known.version > last.version:
            last = known
        children.gone_pods.setdefault(last.uid, last)
        return self._tidied(gone)

    def forget_gone_pods(self, uid: str, *, before_attempt: int) -> None:
        for pod in self.gone_pods(uid):
            if attempt_of(pod) < before_attempt:
                del self._children[uid].gone_pods[pod["metadata"]["uid"]]

    async def relist(
        self,
        *,
        jobs: AsyncIterator[Listing],
        pytorch_jobs: AsyncIterator[Listing],
        pods: AsyncIterator[Listing],
        on_change: Callable[[JobKey], None],
    ) -> None:
        """Page by page: whole lists would take most of the memory of all.

        What isn't listed is gone, unless it came meanwhile and is newer than the list. `on_change` is called at once
        for each change: the next page may fail, and what is known by then is no news to a later list.
        """
        for pages, all_known, put, drop in (
            (jobs, self._all_jobs, self.put_job, self.drop_job),
            (pytorch_jobs, self._all_pytorch_jobs, self.put_pytorch_job, self.drop_pytorch_job),
            (pods, self._all_pods, self.put_pod, self.drop_pod),
        ):
            versions = {known.uid: known.version for known in all_known()}
            uids: set[str] = set()
            listed_version = 0
            async for page in pages:
                listed_version = min(listed_version or page.version, page.version)
                for found in page.items:
                    uid = found["metadata"]["uid"]
                    uids.add(uid)
                    if versions.get(uid) != version_of(found):
                        on_change(put(found, when_asked=versions.get(uid)))
            for known in all_known():
                came_meanwhile = versions.get(known.uid) != known.version
                if known.uid not in uids and not (came_meanwhile and known.version > listed_version):
                    on_change(drop(known.unpacked()))

    def _tidied(self, gone: Object) -> JobKey:
        """The last child of a job that is gone takes the rest with it."""
        key, uid = owner_key(gone), gone["metadata"]["labels"][names.JOB_UID_LABEL]
        job, children = self._jobs.get(key), self._children[uid]
        if (job is None or job.uid != uid) and not children.pods and not children.pytorch_jobs:
            del self._children[uid]
        return key

    def _all_jobs(self) -> list[Packed]:
        return list(self._jobs.values())

    def _all_pytorch_jobs(self) -> list[Packed]:
        return [found for children in self._children.values() for found in children.pytorch_jobs.values()]

    def _all_pods(self) -> list[Packed]:
        return [found for children in self._children.values() for found in children.pods.values()]

    def _of(self, child: Object) -> _Children:
        return self._children.setdefault(child["metadata"]["labels"][names.JOB_UID_LABEL], _Children())


def _is_newer(found: Object, known: Packed | None, when_asked: int | None) -> bool:
    return known is None or version_of(found) >= known.version or known.version == when_asked


def _unpacked(known: dict[str, Packed]) -> list[Object]:
    return [found.unpacked() for found in known.values()]


def key_of(job: Object) -> JobKey:
    return JobKey(job["metadata"]["namespace"], job["metadata"]["name"])


def owner_key(child: Object) -> JobKey:
    return JobKey(child["metadata"]["namespace"], child["metadata"]["labels"].get(names.JOB_LABEL, ""))


def attempt_of(child: Object) -> int:
    """-1 where the label isn't ours."""
    label = child["metadata"]["labels"].get(names.ATTEMPT_LABEL, "")
    return int(label) if label.isdecimal() else -1
