"""What Kueue says of attempts that it holds back: its Workloads in, a sentence each out. Called by the backend.

All are listed at once and seldom, as long as anybody asks: a thousand jobs that wait cost what one does.
"""

import asyncio
import time

from sft_operator.kubernetes.api import ClusterApi, Object

LIST_AGAIN_SECONDS = 8.0
MISSING_AGAIN_SECONDS = 2.0

_OWNER_UID_LABEL = "kueue.x-k8s.io/job-uid"


class QueueNews:
    def __init__(self, api: ClusterApi) -> None:
        self._api = api
        self._told: dict[str, str] = {}
        self._listed_at = float("-inf")
        self._lock = asyncio.Lock()

    async def of(self, pytorch_job: Object) -> str | None:
        """None where Kueue has not taken it up; empty where it has nothing to say."""
        uid = pytorch_job["metadata"]["uid"]
        async with self._lock:
            # A word that is missing may have come since: of what was held back or taken away just now.
            patience = LIST_AGAIN_SECONDS if self._told.get(uid) else MISSING_AGAIN_SECONDS
            if time.monotonic() - self._listed_at >= patience:
                self._told = {
                    found["metadata"].get("labels", {}).get(_OWNER_UID_LABEL, ""): reason_of(found)
                    async for page in self._api.list_workloads()
                    for found in page.items
                }
                self._listed_at = time.monotonic()
        return self._told.get(uid)


def reason_of(workload: Object) -> str:
    """Why it does not run. That it was evicted counts until it is admitted again."""
    conditions = {condition["type"]: condition for condition in workload.get("status", {}).get("conditions", [])}
    for type_, status in (("Evicted", "True"), ("QuotaReserved", "False"), ("Admitted", "False")):
        if type_ in conditions and conditions[type_]["status"] == status:
            return str(conditions[type_].get("message", ""))
    return ""
