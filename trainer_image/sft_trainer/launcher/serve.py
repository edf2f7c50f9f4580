"""Progress over HTTP, read-only: `/progress` is the file as it is, `/metrics` the same for Prometheus."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sft_trainer.progress import read_progress

_GAUGES = {
    "step": "Last finished optimiser step",
    "total_steps": "Optimiser steps of the whole run",
    "epoch": "Passes over the data so far",
    "loss": "Mean loss per trained token of the last step",
    "learning_rate": "Learning rate of the last step",
    "grad_norm": "Global gradient norm of the last step, before clipping",
    "skipped_steps": "Steps that changed nothing for the norm of their gradient",
    "eval_loss": "Mean loss per trained token of the evaluation data, at the last evaluation",
    "best_eval_loss": "The lowest evaluation loss so far",
    "tokens_per_second": "Tokens trained on per second, over all ranks",
    "mfu": "Share of the devices' dense bf16 limit that the last step reached",
    "data_wait": "Share of the last step that waited for its data",
    "memory_bytes": "The most that rank 0 has held so far",
    "eta_seconds": "Estimated seconds until training ends",
    "saved_step": "Newest published checkpoint",
    "attempt": "Number of the attempt",
}


class _ProgressCollector(Collector):
    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def collect(self) -> Iterator[Metric]:
        progress = read_progress(self._scratch)
        if progress is None:
            return
        stage = GaugeMetricFamily("sftjob_stage_info", "What the attempt is doing", labels=["stage"])
        stage.add_metric([progress.stage], 1)
        yield stage
        for field, text in _GAUGES.items():
            value = getattr(progress, field)
            if value is not None:
                yield GaugeMetricFamily(f"sftjob_{field}", text, value=value)


class _Server(ThreadingHTTPServer):
    """Without a host it listens on all addresses: of IPv4, and of IPv6 where the machine has any."""

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        if not host and socket.has_dualstack_ipv6():
            self.address_family = socket.AF_INET6
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # The machine's own default may be IPv6 alone.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve_progress(scratch: Path, *, address: str) -> ThreadingHTTPServer:
    """Serves in a daemon thread on `host:port`, or `:port` for all addresses; the caller shuts the server down."""
    registry = CollectorRegistry()
    registry.register(_ProgressCollector(scratch))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, generate_latest(registry), "text/plain; version=0.0.4")
            elif self.path == "/progress" and (progress := read_progress(scratch)):
                self._answer(200, progress.to_json().encode(), "application/json")
            else:
                self._answer(404, b"known here: /progress, /metrics\n", "text/plain")

        def _answer(self, code: int, body: bytes, content_type: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """A scrape every few seconds is not worth a line."""

    host, _, port = address.rpartition(":")
    server = _Server(host, int(port), Handler)
    threading.Thread(target=server.serve_forever, name="serve-progress", daemon=True).start()
    return server
