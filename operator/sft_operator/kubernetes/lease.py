"""Who of several operators works: the holder of a Lease. What keeps two from doing harm is the fence in storage."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable
from typing import Any

from aiohttp import ClientError
from kubernetes.aio.client import ApiClient, ApiException, V1Lease, V1ObjectMeta
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

log = logging.getLogger(__name__)

NAME = "sft-operator"
LEASE_SECONDS = 15
RENEW_SECONDS = 10
RETRY_SECONDS = 2
CALL_SECONDS = 2


class LeaseLost(Exception):
    """Another operator may be at work from now on."""


class _Lock(LeaseLock):
    """Whatever goes wrong with a call is a failed renewal: the library expects refusals by the API server only."""

    async def get(self, name: str, namespace: str) -> Any:
        try:
            # Not `wait_for`: in Python 3.11 it forgets a cancellation that comes with the answer, and nobody ends.
            async with asyncio.timeout(CALL_SECONDS):
                found = await super().get(name, namespace)
        except (ClientError, TimeoutError, OSError) as error:
            return False, ApiException(reason=repr(error))
        return found

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        # The library's own passes an option of a type that its client refuses (kubernetes 37.0.2).
        lease = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        return await _succeeds(self.api_instance.create_namespaced_lease(namespace, lease))

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        return await _succeeds(super().update(name, namespace, updated_record))

    async def release(self) -> None:
        """Whoever waits needn't wait for its end."""
        found, _ = await self.get(self.name, self.namespace)
        lease = self.lease_reference if found else None
        if lease is not None and lease.spec is not None and lease.spec.holder_identity == self.identity:
            lease.spec.holder_identity = ""
            await _succeeds(self.api_instance.replace_namespaced_lease(self.name, self.namespace, lease))


async def hold_lease(client: ApiClient, *, namespace: str, held: asyncio.Event) -> None:
    """Sets `held` once this process has the lease. Raises LeaseLost when it has it no more; never returns."""

    async def lead() -> None:
        held.set()
        await asyncio.Event().wait()

    async def lose() -> None:
        raise LeaseLost(f"{identity()} could not renew the lease {namespace}/{NAME}")

    lock = _Lock(NAME, namespace, identity(), client)
    try:
        await LeaderElection(Config(lock, LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, lead, lose)).run()
    except asyncio.CancelledError:
        if held.is_set():
            await lock.release()
        raise


def identity() -> str:
    """The pod's name: a container that is restarted in it goes on at once. Else unique among live processes."""
    return os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"


async def _succeeds(call: Awaitable[Any]) -> bool:
    try:
        async with asyncio.timeout(CALL_SECONDS):
            written = await call
    except (ApiException, ClientError, TimeoutError, OSError) as error:
        log.warning("the lease could not be written: %s", error)
        return False
    return written is not False
