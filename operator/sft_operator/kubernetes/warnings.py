"""Warnings about PyTorchJobs and pods, as the cluster's events tell them. Called by the backend for what is stuck.

A namespace's are listed at once, and not again within seconds: a thousand jobs that are stuck cost what one does.
"""

from functools import partial

from sft_operator.kubernetes.api import ClusterApi, Object
from sft_operator.kubernetes.seldom import Seldom

LIST_AGAIN_SECONDS = 2.0
FORGET_SECONDS = 60.0
"""After the last question about a namespace: its events may be many, and it may be gone."""

_KINDS = ("PyTorchJob", "Pod")

_ByUid = dict[str, list[Object]]


class Warnings:
    def __init__(self, api: ClusterApi) -> None:
        self._api = api
        self._namespaces: dict[str, Seldom[_ByUid]] = {}

    async def about(self, found: Object) -> list[Object]:
        namespace = found["metadata"]["namespace"]
        if namespace not in self._namespaces:
            self._namespaces[namespace] = Seldom(partial(self._list, namespace), before={})
        listed = self._namespaces[namespace]
        await listed.renew(patience=LIST_AGAIN_SECONDS)
        return listed.answer.get(found["metadata"]["uid"], [])

    def forget_unused(self) -> None:
        self._namespaces = {
            namespace: listed
            for namespace, listed in self._namespaces.items()
            if not listed.is_unused(since_seconds=FORGET_SECONDS)
        }

    async def _list(self, namespace: str) -> _ByUid:
        by_uid: _ByUid = {}
        async for page in self._api.list_warnings(namespace):
            for event in page.items:
                # Whoever writes an event may leave out what it is about.
                about = event["involvedObject"]
                if about.get("kind") in _KINDS and "uid" in about:
                    by_uid.setdefault(about["uid"], []).append(event)
        return by_uid
