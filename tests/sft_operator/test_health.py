"""The operator's own pages: where they are reached."""

import asyncio
import socket

import aiohttp
import pytest

from sft_operator.kubernetes.cache import Cache
from sft_operator.kubernetes.health import Health, serve_health
from sft_operator.kubernetes.progress import ProgressPoller
from sft_operator.kubernetes.queue import WorkQueue


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_without_a_host_the_kubelet_reaches_it_by_ipv4_and_by_ipv6() -> None:
    async def answers() -> dict[str, int]:
        poller = ProgressPoller(None, None)  # type: ignore[arg-type]
        runner = await serve_health(Health(Cache(), WorkQueue(), poller), ":0")
        try:
            async with aiohttp.ClientSession() as session:
                told = {}
                for host, port, *_ in runner.addresses:
                    loopback = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}[host]
                    async with session.get(f"http://{loopback}:{port}/livez") as answer:
                        told[loopback] = answer.status
                return told
        finally:
            await runner.cleanup()

    assert asyncio.run(answers()) == {"127.0.0.1": 200, "[::1]": 200}
