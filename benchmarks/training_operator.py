"""The local cluster's training-operator, scaled and given other limits for a while. Called by `benchmarks.operator`."""

import json
from typing import Any

from cluster.client import Client, StartFailed

_PLACE = "--namespace=kubeflow"
_DEPLOYMENT = "deployment/training-operator"
_WEBHOOKS = "validatingwebhookconfiguration/validator.training-operator.kubeflow.org"
_WEBHOOK = "validator.pytorchjob.training-operator.kubeflow.org"
_LIFTED = ["--kube-api-qps=1000", "--kube-api-burst=1000", "--controller-threads=10"]


class TrainingOperator:
    def __init__(self, client: Client) -> None:
        self._client = client

    def pass_over_webhook(self, namespace: str) -> None:
        """It answers for no object of this namespace: while it is scaled to 0 it would refuse all of them."""
        others = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [namespace]}
        self._select({"matchExpressions": [others]})

    def stop(self) -> None:
        self._patch(_DEPLOYMENT, [{"op": "replace", "path": "/spec/replicas", "value": 0}])
        self._run(
            "wait", "--for=delete", "pod", "--selector=control-plane=kubeflow-training-operator", "--timeout=120s"
        )

    def start(self, *, lifted: bool) -> None:
        """Returns when it is ready."""
        self._patch(
            _DEPLOYMENT,
            [
                {"op": "add", "path": "/spec/template/spec/containers/0/args", "value": _LIFTED if lifted else []},
                {"op": "replace", "path": "/spec/replicas", "value": 1},
            ],
        )
        self._run("rollout", "status", _DEPLOYMENT, "--timeout=180s")

    def put_back(self) -> None:
        self._select({})
        self.start(lifted=False)

    def _select(self, selector: dict[str, Any]) -> None:
        found = json.loads(self._run("get", _WEBHOOKS, "--output=json"))
        index = [webhook["name"] for webhook in found["webhooks"]].index(_WEBHOOK)
        self._patch(_WEBHOOKS, [{"op": "add", "path": f"/webhooks/{index}/namespaceSelector", "value": selector}])

    def _patch(self, name: str, operations: list[dict[str, Any]]) -> None:
        self._run("patch", name, "--type=json", f"--patch={json.dumps(operations)}")

    def _run(self, *arguments: str) -> str:
        done = self._client.run(_PLACE, *arguments)
        if done.returncode:
            raise StartFailed(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout
