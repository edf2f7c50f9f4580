"""kopf, and nothing of it elsewhere: its watches fill the cache and ask for passes. No handler decides or writes.

No finalizers, annotations, timers or daemons: events only, of which any may be missed, for a list follows.
"""

import asyncio
import random
import signal
from typing import Any

import kopf

from sft_operator.kubernetes.api import PAGE, is_in_cluster
from sft_operator.kubernetes.cache import Cache
from sft_operator.kubernetes.queue import WorkQueue
from sftjob import names


class Stopped(Exception):
    """A signal asked the operator to end."""


async def watch(
    cache: Cache, queue: WorkQueue, *, namespaces: tuple[str, ...], pytorch_jobs: bool, stop: asyncio.Event
) -> None:
    """Ends only by an exception. `pytorch_jobs`: whether the cluster has this resource.

    Raises Stopped once `stop` is set, which SIGTERM and SIGINT do from now on.
    """
    registry = kopf.OperatorRegistry()
    changes = {
        (names.GROUP, names.VERSION, names.PLURAL): (cache.put_job, cache.drop_job),
        ("", "v1", "pods"): (cache.put_pod, cache.drop_pod),
    }
    if pytorch_jobs:
        changes["kubeflow.org", "v1", "pytorchjobs"] = (cache.put_pytorch_job, cache.drop_pytorch_job)
    for (group, version, plural), (put, drop) in changes.items():

        async def change(event: Any, put: Any = put, drop: Any = drop, **_: Any) -> None:
            found = event["object"]
            # A watch begins with a list, of what our own has told already. And a job's new version may be our own
            # status: the pass that wrote it has left nothing to do, but at a time that it named.
            may_be_known = event["type"] is None or (found["kind"] == names.KIND and event["type"] != "DELETED")
            if may_be_known and cache.knows(found):
                return
            queue.add((drop if event["type"] == "DELETED" else put)(found))

        kopf.on.event(group=group, version=version, plural=plural, registry=registry, id=plural)(change)

    kopf.on.login(registry=registry)(kopf.login_with_service_account if is_in_cluster() else kopf.login_with_kubeconfig)
    others = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=_settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
    )
    # From kopf, which takes seconds to end, and forgets the signal where the process begins anew meanwhile.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await kopf.run_tasks(tasks, ignored=others)
    raise Stopped


class _NothingToCompare(kopf.DiffBaseStorage):
    """kopf copies every object several times to compare it with the one it handled last, which no handler asks for."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # Otherwise it wants to list and watch namespaces and definitions.
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.persistence.diffbase_storage = _NothingToCompare()
    # Whole lists, or a task and an object for each that was listed, would take more memory than all the rest.
    settings.watching.chunk_size = PAGE
    settings.queueing.idle_timeout = 0.1
    settings.queueing.worker_limit = PAGE
    # An API server that restarts is waited for; after the last of these the process starts anew.
    settings.networking.error_backoffs = [min(15, 2**n) * random.uniform(0.8, 1.2) for n in range(12)]
    for plural in ("pods", "pytorchjobs"):
        settings.watching.label_selectors[plural] = names.JOB_UID_LABEL
    return settings
