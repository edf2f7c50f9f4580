"""The operator about itself, over HTTP: `/livez` and `/readyz` for the kubelet, `/metrics` for Prometheus."""

import time
from collections.abc import Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sft_operator.kubernetes.cache import Cache
from sft_operator.kubernetes.namespaces import left_out
from sft_operator.kubernetes.progress import ProgressPoller
from sft_operator.kubernetes.queue import WorkQueue
from sftjob.status import Phase

STALE_SECONDS = 900
"""Without a whole list, or with a key that nobody takes up: longer than any outage that mends itself."""


class Health:
    def __init__(self, cache: Cache, queue: WorkQueue, poller: ProgressPoller) -> None:
        self._cache = cache
        self._queue = queue
        self._poller = poller
        self._listed_at = time.monotonic()
        self.leads = False
        self.waits_for = "its lease"
        """What keeps it from its work, while it does not lead."""
        self.left_out: tuple[str, ...] = ()
        """Namespaces that were named and in which it may not work."""

    def listed(self) -> None:
        """A whole list was read."""
        self._listed_at = time.monotonic()

    def ages(self) -> dict[str, float]:
        return {"last_list": time.monotonic() - self._listed_at, "oldest_key": self._queue.oldest_age()}

    async def livez(self, _: web.Request) -> web.Response:
        ages = self.ages() if self.leads else {"last_list": self.ages()["last_list"]}
        text = "".join(f"{what}_age_seconds {age:.1f}\n" for what, age in ages.items())
        return web.Response(text=text, status=200 if max(ages.values()) < STALE_SECONDS else 503)

    async def readyz(self, _: web.Request) -> web.Response:
        if self.leads:
            return web.Response(text=f"at work\n{left_out(self.left_out)}\n" if self.left_out else "at work\n")
        return web.Response(text=f"waits: {self.waits_for}\n", status=503)

    async def metrics(self, _: web.Request) -> web.Response:
        registry = CollectorRegistry()
        registry.register(_Figures(self, self._cache, self._queue, self._poller))
        return web.Response(body=generate_latest(registry), content_type="text/plain")


class _Figures(Collector):
    def __init__(self, health: Health, cache: Cache, queue: WorkQueue, poller: ProgressPoller) -> None:
        self._health, self._cache, self._queue, self._poller = health, cache, queue, poller

    def collect(self) -> Iterator[Metric]:
        phases = self._cache.job_phases()
        jobs = GaugeMetricFamily("sft_operator_jobs", "SFTJobs by phase", labels=["phase"])
        for phase in Phase:
            jobs.add_metric([phase], phases[phase])
        yield jobs
        for what, age in self._health.ages().items():
            yield GaugeMetricFamily(f"sft_operator_{what}_age_seconds", "Seconds since", value=age)
        yield GaugeMetricFamily("sft_operator_leads", "1 while it holds the lease", value=int(self._health.leads))
        told = "Namespaces that were named and in which it may not work"
        yield GaugeMetricFamily("sft_operator_namespaces_left_out", told, value=len(self._health.left_out))
        told = "Launchers that run and have told no progress for a minute"
        yield GaugeMetricFamily("sft_operator_launchers_unheard", told, value=self._poller.unheard())
        yield CounterMetricFamily("sft_operator_passes", "Passes over a job", value=self._queue.passes)
        yield CounterMetricFamily("sft_operator_failed_passes", "Passes that failed", value=self._queue.failed_passes)


async def serve_health(health: Health, address: str) -> web.AppRunner:
    """On `host:port`, or `:port` for all addresses, until the runner is cleaned up."""
    host, _, port = address.rpartition(":")
    application = web.Application()
    pages = {"/livez": health.livez, "/readyz": health.readyz, "/metrics": health.metrics}
    application.add_routes([web.get(path, page) for path, page in pages.items()])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, int(port)).start()
    return runner
