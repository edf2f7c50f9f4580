"""Warnings about PyTorchJobs and pods, as the cluster's events tell them. Called by the backend for what is stuck.

A namespace's are listed at once, and not again within seconds: a thousand jobs that are stuck cost what one does.
"""

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field

from sft_operator.kubernetes.api import ClusterApi, Object

LIST_AGAIN_SECONDS = 2.0

_KINDS = ("PyTorchJob", "Pod")


@dataclass
class _Listed:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    at: float = float("-inf")
    by_uid: dict[str, list[Object]] = field(default_factory=dict)


class Warnings:
    def __init__(self, api: ClusterApi) -> None:
        self._api = api
        self._namespaces: defaultdict[str, _Listed] = defaultdict(_Listed)

    async def about(self, found: Object) -> list[Object]:
        listed = self._namespaces[found["metadata"]["namespace"]]
        async with listed.lock:
            if time.monotonic() - listed.at >= LIST_AGAIN_SECONDS:
                by_uid: dict[str, list[Object]] = {}
                async for page in self._api.list_warnings(found["metadata"]["namespace"]):
                    for event in page.items:
                        if event["involvedObject"]["kind"] in _KINDS:
                            by_uid.setdefault(event["involvedObject"]["uid"], []).append(event)
                listed.by_uid, listed.at = by_uid, time.monotonic()
        return listed.by_uid.get(found["metadata"]["uid"], [])
