"""What Kueue says of attempts that it holds back: its Workloads in, a sentence each out. Called by the backend.

All are listed at once and seldom, as long as anybody asks: a thousand jobs that wait cost what one does.
"""

from sft_operator.kubernetes.api import ClusterApi, Object
from sft_operator.kubernetes.seldom import Seldom

LIST_AGAIN_SECONDS = 8.0
MISSING_AGAIN_SECONDS = 2.0

_OWNER_UID_LABEL = "kueue.x-k8s.io/job-uid"


class QueueNews:
    def __init__(self, api: ClusterApi) -> None:
        self._api = api
        self._told: Seldom[dict[str, str]] = Seldom(self._list, before={})

    async def of(self, pytorch_job: Object) -> str | None:
        """None where Kueue has not taken it up; empty where it has nothing to say, or can't be asked."""
        uid, told = pytorch_job["metadata"]["uid"], self._told
        # A word that is missing may have come since: of what was held back or taken away just now.
        is_settled = told.has_failed or bool(told.answer.get(uid))
        await told.renew(patience=LIST_AGAIN_SECONDS if is_settled else MISSING_AGAIN_SECONDS)
        return told.answer.get(uid, "" if told.has_failed else None)

    async def _list(self) -> dict[str, str]:
        return {
            found["metadata"].get("labels", {}).get(_OWNER_UID_LABEL, ""): reason_of(found)
            async for page in self._api.list_workloads()
            for found in page.items
        }


def reason_of(workload: Object) -> str:
    """Why it does not run. That it was evicted counts until it is admitted again."""
    conditions = {condition["type"]: condition for condition in workload.get("status", {}).get("conditions", [])}
    for type_, status in (("Evicted", "True"), ("QuotaReserved", "False"), ("Admitted", "False")):
        if type_ in conditions and conditions[type_]["status"] == status:
            return str(conditions[type_].get("message", ""))
    return ""
