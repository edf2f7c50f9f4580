"""Our operator as a process of this machine, for one namespace, with what it and the kernel tell of it.

Called by `benchmarks.operator`.
"""

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

PATIENCE_SECONDS = 600


class OperatorProcess:
    def __init__(self, process: subprocess.Popen[bytes], *, port: int, log: Path) -> None:
        self._process = process
        self._metrics = f"http://127.0.0.1:{port}/metrics"
        self._log = log

    async def is_ready(self, *, passes: int) -> None:
        """Returns once it leads and has made as many passes.

        Raises RuntimeError with its log's end where it does not.
        """
        for _ in range(PATIENCE_SECONDS * 5):
            if self._process.poll() is not None:
                break
            figures = await self._figures()
            if figures.get("sft_operator_leads") and figures["sft_operator_passes_total"] >= passes:
                return
            await asyncio.sleep(0.2)
        raise RuntimeError(f"the operator is not ready:\n{self._log.read_text()[-4000:]}")

    async def is_quiet(self) -> None:
        """Returns once it has made no pass for 10 s: what its start has left to do is done."""
        passes, before = 1.0, 0.0
        while passes != before:
            before = passes
            await asyncio.sleep(10)
            passes = (await self._figures())["sft_operator_passes_total"]

    async def _figures(self) -> dict[str, float]:
        """Empty before it answers."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self._metrics) as response:
                text = await response.text()
        except aiohttp.ClientConnectionError:
            return {}
        return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}

    def resident_mib(self) -> int:
        return self._kib("VmRSS") // 1024

    def most_resident_mib(self) -> int:
        return self._kib("VmHWM") // 1024

    def processor_seconds(self) -> float:
        """Of all its threads since its start."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _kib(self, name: str) -> int:
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        (found,) = re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
        return int(found)


@asynccontextmanager
async def running_operator(kubeconfig: Path, *, namespace: str) -> AsyncIterator[OperatorProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--trainer-image", "none", "--namespace", namespace, "--lease-namespace", namespace]
    command = [sys.executable, "-m", "sft_operator", *options, "--serve", f"127.0.0.1:{port}"]
    with tempfile.NamedTemporaryFile() as log:
        environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield OperatorProcess(process, port=port, log=Path(log.name))
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)
