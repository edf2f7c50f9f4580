"""Which pods are long past their grace, by this process's own monotonic time: the cluster's clock may be hours away.

Kept by the backend for `observe`. A process that has just begun knows of no pod how long it has been told to end: a
restart delays that a node counts as lost, and never brings it about.
"""

from collections.abc import Iterable, Set

from sft_operator.kubernetes.api import Object

LOST_AFTER_SECONDS = 60.0
"""Past its grace: a kubelet that lives would have killed it. The fence in storage keeps a zombie from doing harm."""


class Graces:
    def __init__(self) -> None:
        self._told: dict[str, dict[str, float]] = {}
        """When each pod was first seen to be told, by its uid; by the job's."""

    def over(self, uid: str, pods: Iterable[Object], *, now: float) -> Set[str]:
        """The uids of those of a job's pods, which are given all together, that nobody is left to end."""
        ending = {pod["metadata"]["uid"]: pod["metadata"] for pod in pods if "deletionTimestamp" in pod["metadata"]}
        before = self._told.pop(uid, {})
        told = {pod: before.get(pod, now) for pod in ending}
        if told:
            self._told[uid] = told
        return {
            pod
            for pod, since in told.items()
            if now - since > ending[pod].get("deletionGracePeriodSeconds", 0) + LOST_AFTER_SECONDS
        }

    def keep_only(self, uids: Set[str]) -> None:
        for uid in self._told.keys() - uids:
            del self._told[uid]
