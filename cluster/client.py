"""kubectl, as the cluster's administrator."""

import json
import subprocess
from pathlib import Path
from typing import Any


class StartFailed(Exception):
    """The cluster did not come up; the message says what did not come, and where to look."""


class Client:
    def __init__(self, kubectl: Path, *, kubeconfig: Path) -> None:
        self._command = [str(kubectl), f"--kubeconfig={kubeconfig}"]

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._command, *arguments], input=stdin, capture_output=True, text=True)

    def is_ready(self) -> bool:
        return self.run("get", "--raw=/readyz", "--request-timeout=5s").returncode == 0

    def apply(self, document: str) -> None:
        """Raises StartFailed with the API server's words."""
        done = self.run("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=document)
        if done.returncode:
            raise StartFailed(f"kubectl apply: {done.stderr.strip()}")

    def has_condition(self, name: str, condition: str, *, namespace: str = "default") -> bool:
        """`name` with its kind: `node/sftjob-1`. Waits two seconds for it."""
        wait = ("wait", f"--for=condition={condition}", name, f"--namespace={namespace}", "--timeout=2s")
        return self.run(*wait).returncode == 0

    def load_image(self, image: str, *, node: str) -> None:
        """Pulled by the node as for any pod, but anew: a tag that a node knows it would not look up again.

        Raises StartFailed with what the pod's events say.
        """
        name = f"load-{node}"
        container = {"name": "load", "image": image, "imagePullPolicy": "Always", "command": ["true"]}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "kube-system"},
            "spec": {"nodeName": node, "restartPolicy": "Never", "containers": [container]},
        }
        place = (f"pod/{name}", "--namespace=kube-system")
        self.run("delete", *place, "--ignore-not-found")
        self.apply(json.dumps(pod))
        done = self.run("wait", "--for=jsonpath={.status.phase}=Succeeded", *place, "--timeout=600s")
        if done.returncode:
            raise StartFailed(f"{image} on {node}: {done.stderr.strip()}: {self.run('describe', *place).stdout}")
        self.run("delete", *place)

    def nodes(self) -> dict[str, bool]:
        """By name, whether it is ready; empty where the API server does not answer."""
        told = self.run("get", "nodes", "--output=json", "--request-timeout=5s")
        if told.returncode:
            return {}
        return {item["metadata"]["name"]: _is_ready(item) for item in json.loads(told.stdout)["items"]}


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = {condition["type"]: condition["status"] for condition in node["status"]["conditions"]}
    return conditions.get("Ready") == "True"
