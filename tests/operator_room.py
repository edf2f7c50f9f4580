"""A namespace of the real cluster with claims, and an operator for it alone, which runs here behind a proxy."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from api_proxy import ApiProxy
from e2e.local_run import LocalRun, job
from real_cluster import PATIENCE_SECONDS, Cluster

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

SIGNAL_RANKS = """
import os, pathlib, sys
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if (folder / "comm").read_text().startswith("sft-rank"):
            os.kill(int(folder.name), int(sys.argv[1]))
            print("signalled", folder.name)
    except (FileNotFoundError, ProcessLookupError):
        pass
"""


class Operator:
    """`python -m sft_operator` as a process of this machine, with the proxy's kubeconfig."""

    def __init__(
        self, proxy: ApiProxy, namespace: str, log: Path, *, sources: Path | None, options: tuple[str, ...]
    ) -> None:
        self.log = log
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "sft_operator", "--serve", self.address, "--trainer-image", Cluster.image]
        command += ["--namespace", namespace, "--lease-namespace", namespace, *options]
        env = os.environ | {"KUBECONFIG": str(proxy.kubeconfig)}
        if sources is not None:
            env["PYTHONPATH"] = f"{sources / 'api'}:{sources / 'operator'}"
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.go_on()
        self.process.terminate()
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it went on after SIGTERM:\n{self.log.read_text()[-4000:]}") from None


class Room:
    def __init__(self, cluster: Cluster, namespace: str, folder: Path, proxy: ApiProxy) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.proxy = proxy
        self._folder = folder
        self.operators: list[Operator] = []

    def start_operator(self, *options: str, sources: Path | None = None) -> Operator:
        """This one, or the one of another version's sources, with further options."""
        log = self._folder / "operator.log"
        operator = Operator(self.proxy, self.namespace, log, sources=sources, options=options)
        self.operators.append(operator)
        return operator

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl(f"--namespace={self.namespace}", *arguments, stdin=stdin)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "--output=json"))
        return found

    def items(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "--output=json"))["items"]
        return found

    def status(self, name: str = "small") -> dict[str, Any]:
        status: dict[str, Any] = self.get("sftjob", name).get("status", {})
        return status

    def condition(self, type_: str, name: str = "small") -> dict[str, Any]:
        """`{}` where it does not hold."""
        found = self.status(name).get("conditions", [])
        return next((c for c in found if c["type"] == type_ and c["status"] == "True"), {})

    def claim_folder(self, claim: str) -> Path:
        """Where the claim's content lies on this machine."""
        self.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", f"pvc/{claim}", f"--timeout={PATIENCE_SECONDS}s")
        volume = self.get("pvc", claim)["spec"]["volumeName"]
        return Path(self.cluster.get("pv", volume)["spec"]["local"]["path"])

    def run(self) -> LocalRun:
        """The results, to be compared as those of a run on one machine."""
        return LocalRun(self.claim_folder("results"), {})

    def until(self, condition: Callable[[], Any]) -> Any:
        """The first true answer."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS} s in vain:\n{self.told()}"
            time.sleep(1)
        return answer

    def until_phase(self, *phases: str, name: str = "small") -> dict[str, Any]:
        """The status; fails where the job ends otherwise."""

        def reached() -> dict[str, Any] | None:
            status = self.status(name)
            phase = status.get("phase")
            assert phase in phases or phase not in ("Succeeded", "Failed"), self.told()
            return status if phase in phases else None

        found: dict[str, Any] = self.until(reached)
        return found

    def until_step(self, step: int, *, attempt: int = 1) -> None:
        """By the metrics in storage, which know a step the moment that it is finished."""
        self.run().until_step(step, attempt=attempt)

    def signal_ranks(self, node_rank: int, signal_: signal.Signals, *, attempt: int) -> str:
        """All of a node's; the name of its pod."""
        name = self.pod_of(node_rank, attempt=attempt)
        command = ("python", "-c", SIGNAL_RANKS, str(int(signal_)))
        assert "signalled" in self.kubectl("exec", name, "--", *command)
        return name

    def pod_of(self, node_rank: int, *, attempt: int = 1) -> str:
        selector = f"sftjob.dev/attempt={attempt},training.kubeflow.org/replica-index={node_rank}"
        return self.kubectl("get", "pods", f"--selector={selector}", "--output=jsonpath={.items[0].metadata.name}")

    def patch(self, name: str = "small", **policy: Any) -> None:
        """Fields of the run policy."""
        spec = json.dumps({"spec": {"runPolicy": policy}})
        self.kubectl("patch", "sftjob", name, "--type=merge", f"--patch={spec}")

    def told(self) -> str:
        """All that helps to understand a failure."""
        log = self._folder / "operator.log"
        return "\n".join(
            [
                self.kubectl("get", "sftjobs,pytorchjobs,pods", "--output=wide"),
                self.kubectl("get", "sftjobs", "--output=yaml"),
                log.read_text()[-4000:] if log.exists() else "",
            ]
        )


@contextmanager
def room(cluster: Cluster, namespace: str, folder: Path, *, model: Path, chats: Path) -> Iterator[Room]:
    """With the claims `inputs` (tokenizer, chats.jsonl) and `results`; no operator yet.

    Its end is not waited for: what it holds goes with its namespace, and at the latest with the cluster.
    """
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": restricted}})
    folder.mkdir(parents=True, exist_ok=True)
    with ApiProxy(cluster.folder / "kubeconfig", folder) as proxy:
        made = Room(cluster, namespace, folder, proxy)
        try:
            spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
            made.apply(
                *(
                    {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
                    for name in ("inputs", "results")
                )
            )
            inputs = made.claim_folder("inputs")
            (inputs / "tokenizer").mkdir()
            for name in TOKENIZER_FILES:
                shutil.copy(model / name, inputs / "tokenizer")
            shutil.copy(chats, inputs / "chats.jsonl")
            yield made
        finally:
            for operator in made.operators:
                operator.stop()
            cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def small_job(**sections: Any) -> dict[str, Any]:
    """The small model of the local tests, on two nodes of one rank each."""
    manifest = job(
        tokenizer="pvc://inputs/tokenizer",
        data="pvc://inputs/chats.jsonl",
        **{"compute": {"nodes": 2, "processesPerNode": 1}} | sections,
    )
    return manifest | {"metadata": {"name": "small"}}


def define(cluster: Cluster, sources: Path = ROOT) -> None:
    """SFTJobs, as this version or another one defines them."""
    cluster.kubectl("apply", "--server-side", f"--filename={sources / 'crds' / 'sftjobs.sftjob.dev.yaml'}")


def reasons(status: dict[str, Any]) -> list[str]:
    """Of all attempts, the first one first."""
    return [record["reason"] for record in reversed(status["attempts"]["history"])]
