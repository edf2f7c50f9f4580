"""What Kueue says of attempts that it holds back: its Workloads in, a sentence each out. Called by the backend.

All are listed at once and seldom, as long as anybody asks: a thousand jobs that wait cost what one does.
"""

import logging

from aiohttp import ClientError
from kubernetes.aio.client import ApiException

from sft_operator.kubernetes.api import ClusterApi, Object
from sft_operator.kubernetes.seldom import Seldom

log = logging.getLogger(__name__)

LIST_AGAIN_SECONDS = 8.0
NEWS_AGAIN_SECONDS = 2.0

_OWNER_UID_LABEL = "kueue.x-k8s.io/job-uid"


class QueueNews:
    def __init__(self, api: ClusterApi) -> None:
        self._api = api
        self._told: Seldom[dict[str, str]] = Seldom(self._list, before={})

    async def of(self, pytorch_job: Object, *, is_news: bool) -> str | None:
        """None where Kueue has not taken it up; empty where it has nothing to say, or could never be asked.

        `is_news`: it was held back or taken away just now, and the word that is known may be of before.
        """
        uid, told = pytorch_job["metadata"]["uid"], self._told
        is_settled = told.has_failed or (uid in told.answer and not is_news)
        try:
            await told.renew(patience=LIST_AGAIN_SECONDS if is_settled else NEWS_AGAIN_SECONDS)
        except (ApiException, ClientError, TimeoutError) as error:
            log.warning("queues can't be read: %s", error)
        return told.answer.get(uid, "" if told.has_failed else None)

    async def _list(self) -> dict[str, str]:
        return {
            found["metadata"].get("labels", {}).get(_OWNER_UID_LABEL, ""): reason_of(found)
            async for page in self._api.list_workloads()
            for found in page.items
        }


def reason_of(workload: Object) -> str:
    """Why it does not run. That it was evicted counts until it is admitted again."""
    told = workload.get("status", {})
    conditions = {condition["type"]: condition for condition in told.get("conditions", [])}
    for type_, status in (("Evicted", "True"), ("QuotaReserved", "False")):
        if type_ in conditions and conditions[type_]["status"] == status:
            return str(conditions[type_].get("message", ""))
    # With its quota reserved it waits for checks, and has no condition that says so before it was admitted once.
    open_checks = [check for check in told.get("admissionChecks", []) if check["state"] != "Ready"]
    if "QuotaReserved" in conditions and open_checks:
        return "; ".join(f"{check['name']}: {check['message'] or check['state']}" for check in open_checks)
    admitted = conditions.get("Admitted", {})
    return str(admitted.get("message", "")) if admitted.get("status") == "False" else ""
