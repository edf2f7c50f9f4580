"""The operator under load on the local cluster, and Kubeflow's training-operator: `python -m benchmarks.operator`.

`--json` prints one object. Needs a cluster of this machine (`python -m cluster up`), touches no other, and leaves it
as it was. What makes it fair:

- One run, one API server, the same client. Both controllers answer to objects that are created as fast as the API
  server takes them, and the clock runs from the first of them until a watch has shown the last answer: our operator's
  PyTorchJob of each SFTJob, training-operator's pod of each PyTorchJob. These are the PyTorchJobs that ours makes.
- One at a time: training-operator is scaled to 0 while ours is measured, and ours does not run while it is. Ours has a
  turn before and one after; the slower one counts. All are of as many jobs, and one is answered before the clock
  starts. `burst_seconds` is a turn of its own.
- training-operator as it is released makes 20 calls a second (`pods_per_second_as_released`). `ratio` holds ours
  against one whose limits were lifted to 1,000 calls a second and 10 threads.
- Its webhook is passed over in all turns. No scheduler takes the pods, so that no kubelet is part of any.
- Ours runs outside the cluster, as one process without limits of its own. Its resident memory is the kernel's figure.

The rest is ours alone, with `--finished` jobs in the cluster that succeeded long ago. `cold_seconds` ends when the
operator has been over each of them. `idle_writes` are the API server's own count, of all that the operator has a right
to write but its Lease. For `pod_to_status_p99_seconds` the pods of `--live` jobs are written by this program as a
kubelet would, ten changes a second: from the request until a watch shows the job's new phase.
"""

import argparse
import asyncio
import json
import shlex
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import operator_objects as objects
from benchmarks.api_server import ApiServer, Refused, Watch, all_of, connected
from benchmarks.machine import machine_now
from benchmarks.operator_process import running_operator
from benchmarks.training_operator import TrainingOperator
from cluster import versions
from cluster.build import binary_of
from cluster.client import Client
from cluster.place import cache_folder, cluster_folder, kubeconfig_path, read_record

NAMESPACE = "sft-benchmark"
SFTJOBS = f"/apis/sftjob.dev/v1alpha1/namespaces/{NAMESPACE}/sftjobs"
PYTORCH_JOBS = f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
WRITTEN = ("sftjobs", "pytorchjobs", "pods", "events")
"""What the operator has a right to change, beside its lease."""
CRD = Path(__file__).parents[1] / "crds/sftjobs.sftjob.dev.yaml"
CHANGES_PER_SECOND = 10


@dataclass(frozen=True)
class Answers:
    """Of a turn: seconds from the first request until each answer was seen."""

    created: list[float]
    """The objects themselves, as the API server took them."""
    answered: list[float]

    @property
    def per_second(self) -> float:
        return len(self.answered) / self.answered[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the operator under load on the local cluster.")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--jobs", type=int, default=300, help="of a turn against training-operator")
    parser.add_argument("--released", type=int, default=100, help="the same, with its limits as released")
    parser.add_argument("--burst", type=int, default=1000, help="SFTJobs that are created at once")
    parser.add_argument("--finished", type=int, default=10_000, help="SFTJobs that have finished long ago")
    parser.add_argument("--live", type=int, default=100, help="jobs whose pods change")
    parser.add_argument("--idle-seconds", type=int, default=120, help="for how long writes are counted")
    parser.add_argument("--only", choices=("turns", "finished"), help="one half of it, to look into")
    parser.add_argument("--chart", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    folder = cluster_folder(cache_folder())
    record = read_record(folder)
    if record is None or not record.ready:
        parser.error("no cluster of this machine is up; start one: python -m cluster up")
    report = asyncio.run(_measure(arguments, folder))
    if arguments.chart:
        from benchmarks.operator_chart import draw

        draw(report, arguments.chart)
    print(json.dumps(report, indent=2) if arguments.json else _table(report))
    return 0


async def _measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    measuring = asyncio.current_task()
    assert measuring is not None
    # Whoever is stopped leaves the cluster as it was, too.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    kubeconfig, cache = kubeconfig_path(folder), cache_folder()
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.operator", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("kopf", "kubernetes", "pydantic", "aiohttp")}
        | {"kubernetesServer": versions.KUBERNETES, "trainingOperator": versions.TRAINING_OPERATOR},
        "machine": machine_now(),
    }
    client = Client(binary_of(cache, "kubectl"), kubeconfig=kubeconfig)
    client.apply(CRD.read_text())
    client.run("wait", "--for=condition=Established", "crd/sftjobs.sftjob.dev", "--timeout=60s")
    async with connected(kubeconfig) as api, _namespace(api):
        rival = TrainingOperator(client)
        try:
            rival.pass_over_webhook(NAMESPACE)
            if arguments.only != "finished":
                report |= await _turns(api, kubeconfig, rival, arguments)
            if arguments.only != "turns":
                rival.stop()
                report |= await _with_finished_jobs(api, kubeconfig, arguments)
        finally:
            await _remove_all(api)
            rival.put_back()
    return report


async def _turns(
    api: ApiServer, kubeconfig: Path, rival: TrainingOperator, arguments: argparse.Namespace
) -> dict[str, Any]:
    first = await _our_turn(api, kubeconfig, rival, count=arguments.jobs)
    lifted = await _rivals_turn(api, rival, count=arguments.jobs, lifted=True)
    released = await _rivals_turn(api, rival, count=arguments.released, lifted=False)
    second = await _our_turn(api, kubeconfig, rival, count=arguments.jobs)
    burst = await _our_turn(api, kubeconfig, rival, count=arguments.burst)
    ours = min(first.per_second, second.per_second)
    return {
        "ratio": round(ours / lifted.per_second, 2),
        "ratio_to_released": round(ours / released.per_second, 2),
        "children_per_second": [round(turn.per_second, 1) for turn in (first, second)],
        "pods_per_second": round(lifted.per_second, 1),
        "pods_per_second_as_released": round(released.per_second, 1),
        "burst_seconds": round(burst.answered[-1], 1),
        "turns": {
            "first": asdict(first),
            "second": asdict(second),
            "lifted": asdict(lifted),
            "released": asdict(released),
            "burst": asdict(burst),
        },
    }


async def _our_turn(api: ApiServer, kubeconfig: Path, rival: TrainingOperator, *, count: int) -> Answers:
    rival.stop()
    async with running_operator(kubeconfig, namespace=NAMESPACE) as operator:
        await operator.is_ready(passes=0)
        answers = await _answers(api, SFTJOBS, [objects.job(f"job-{number}") for number in range(count)], PYTORCH_JOBS)
    await _remove_all(api)
    return answers


async def _rivals_turn(api: ApiServer, rival: TrainingOperator, *, count: int, lifted: bool) -> Answers:
    rival.start(lifted=lifted)
    jobs = [objects.child(f"job-{number}", NAMESPACE) for number in range(count)]
    answers = await _answers(api, PYTORCH_JOBS, jobs, PODS)
    rival.stop()
    await _remove_all(api)
    return answers


async def _answers(api: ApiServer, path: str, bodies: list[dict[str, Any]], answers_path: str) -> Answers:
    """The first of the bodies is answered before the clock starts."""
    async with api.watched(path) as created, api.watched(answers_path) as answered:
        await api.call("POST", path, bodies[0])
        await answered.until(lambda: len(answered.seen) == 1)
        began = time.monotonic()
        await all_of(api.call("POST", path, body) for body in bodies[1:])
        await answered.until(lambda: len(answered.seen) == len(bodies))
        await created.until(lambda: len(created.seen) == len(bodies))
    return Answers(_since(began, created), _since(began, answered))


def _since(began: float, watch: Watch) -> list[float]:
    return [round(moment - began, 3) for moment in sorted(watch.seen.values())[1:]]


async def _with_finished_jobs(api: ApiServer, kubeconfig: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    names, status = [f"finished-{number}" for number in range(arguments.finished)], objects.finished_status()

    async def finish(name: str) -> None:
        await api.call("POST", SFTJOBS, objects.job(name))
        await api.write_status(f"{SFTJOBS}/{name}", status)

    await all_of(finish(name) for name in names)
    began = time.monotonic()
    async with running_operator(kubeconfig, namespace=NAMESPACE) as operator:
        await operator.is_ready(passes=len(names))
        cold = time.monotonic() - began
        await operator.is_quiet()
        processor_before, writes_before = operator.processor_seconds(), await api.write_count(WRITTEN)
        await asyncio.sleep(arguments.idle_seconds)
        writes = await api.write_count(WRITTEN) - writes_before
        processor = operator.processor_seconds() - processor_before
        memory = operator.resident_mib(), operator.most_resident_mib()
        latencies = sorted(await _pod_changes(api, arguments.live))
        return {
            "finished": len(names),
            "cold_seconds": round(cold, 1),
            "rss_mib": memory[0],
            "most_rss_mib": memory[1],
            "idle_writes": writes,
            "idle_seconds": arguments.idle_seconds,
            "idle_processor_percent": round(100 * processor / arguments.idle_seconds, 1),
            "pod_to_status_p50_seconds": round(statistics.median(latencies), 3),
            "pod_to_status_p99_seconds": round(latencies[int(0.99 * len(latencies))], 3),
            "pod_to_status_seconds": [round(latency, 3) for latency in latencies],
        }


async def _pod_changes(api: ApiServer, count: int) -> list[float]:
    """Seconds from each change of a pod to its job's phase: first to Running, then to Succeeded."""
    jobs = [f"live-{number}" for number in range(count)]
    async with api.watched(SFTJOBS) as watch, api.watched(PYTORCH_JOBS) as children:
        await all_of(api.call("POST", SFTJOBS, objects.job(name)) for name in jobs)
        await children.until(lambda: len(children.seen) == count)
        pods = {}
        for found in await api.items(PYTORCH_JOBS):
            made = await api.call("POST", PODS, objects.pod(found))
            pods[found["metadata"]["labels"]["sftjob.dev/job-name"]] = made["metadata"]["name"]
        running = await _changed(api, watch, pods, phase="Running", status=objects.running)
        return running + await _changed(api, watch, pods, phase="Succeeded", status=objects.succeeded)


async def _changed(
    api: ApiServer, watch: Watch, pods: dict[str, str], *, phase: str, status: Callable[[], dict[str, Any]]
) -> list[float]:
    """`pods` by the names of their jobs."""
    changed_at: dict[str, float] = {}

    async def change(name: str, index: int) -> None:
        await asyncio.sleep(index / CHANGES_PER_SECOND)
        changed_at[name] = time.monotonic()
        await api.write_status(f"{PODS}/{pods[name]}", status())

    await all_of(change(name, index) for index, name in enumerate(pods))
    await watch.until(lambda: all((name, phase) in watch.phases for name in pods))
    return [watch.phases[name, phase] - changed_at[name] for name in pods]


@asynccontextmanager
async def _namespace(api: ApiServer) -> AsyncIterator[None]:
    metadata, path = {"name": NAMESPACE}, "/api/v1/namespaces"
    await api.call("POST", path, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    try:
        yield
    finally:
        await api.call("DELETE", f"{path}/{NAMESPACE}")
        # Or a run right after this one would find it going.
        while await api.items(f"{path}?fieldSelector=metadata.name%3D{NAMESPACE}"):
            await asyncio.sleep(1)


async def _remove_all(api: ApiServer) -> None:
    """Owners first, so that nobody makes anew what goes; and what they own at once, before the garbage collector."""
    for path in (SFTJOBS, PYTORCH_JOBS, PODS, f"/api/v1/namespaces/{NAMESPACE}/services"):
        options = {"propagationPolicy": "Background", "gracePeriodSeconds": 0}
        while found := await api.items(f"{path}?limit=2000"):
            await all_of(_delete(api, f"{path}/{one['metadata']['name']}", options) for one in found)


async def _delete(api: ApiServer, path: str, options: dict[str, Any]) -> None:
    try:
        await api.call("DELETE", path, options)
    except Refused as error:
        if ": 404" not in str(error):
            raise


def _table(report: dict[str, Any]) -> str:
    lines = []
    if "ratio" in report:
        first, burst = report["children_per_second"]
        lines += [
            f"children a second      {first} and {burst}; pods of training-operator {report['pods_per_second']}, as "
            f"released {report['pods_per_second_as_released']}; ratio {report['ratio']}",
            f"burst                  {report['burst_seconds']} s until each has its child",
        ]
    if "cold_seconds" in report:
        lines += [
            f"{report['finished']} finished jobs: ready after {report['cold_seconds']} s, {report['rss_mib']} MiB, "
            f"{report['idle_writes']} writes in {report['idle_seconds']} s of idleness",
            f"pod to status          p50 {report['pod_to_status_p50_seconds']} s, "
            f"p99 {report['pod_to_status_p99_seconds']} s",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
