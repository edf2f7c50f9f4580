"""The operator's chart as helm renders it: its values, the operator's rights, and a pod that Pod Security accepts."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_cluster import run_tool

from cluster.build import binary_of
from cluster.place import cache_folder
from sftjob import names

pytestmark = pytest.mark.cluster

CHART = Path(__file__).parents[2] / "charts" / "sft-operator"
IMAGES = ("--set=image=registry.example/operator:1", "--set=trainer.image=registry.example/trainer:1")
# helm alone takes a version of Kubernetes that is older than the chart's.
RENDER = ("template", "sft", str(CHART), "--namespace=system", "--kube-version=1.34")

RULES = [
    {"apiGroups": ["sftjob.dev"], "resources": ["sftjobs"], "verbs": ["get", "list", "watch", "delete"]},
    {"apiGroups": ["sftjob.dev"], "resources": ["sftjobs/status"], "verbs": ["patch"]},
    {"apiGroups": ["sftjob.dev"], "resources": ["sftjobs/finalizers"], "verbs": ["update"]},
    {
        "apiGroups": ["kubeflow.org"],
        "resources": ["pytorchjobs"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    },
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "list"]},
    {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list"]},
]
VIEW_RULES = [{"apiGroups": ["sftjob.dev"], "resources": ["sftjobs"], "verbs": ["get", "list", "watch"]}]
EDIT_RULES = [
    {
        "apiGroups": ["sftjob.dev"],
        "resources": ["sftjobs"],
        "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"],
    }
]
LEASE_RULES = [
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": ["sft-operator"],
        "verbs": ["get", "update"],
    },
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
]


@pytest.fixture(scope="session")
def helm() -> Path:
    """The cluster's own, built where it isn't yet."""
    binary = binary_of(cache_folder(), "helm")
    if not binary.exists():
        built = run_tool("build")
        assert built.returncode == 0, built.stdout
    return binary


def call(helm: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(helm), *arguments], capture_output=True, text=True, timeout=300)


def render(helm: Path, *options: str) -> list[dict[str, Any]]:
    done = call(helm, *RENDER, *IMAGES, *options)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def rights(objects: list[dict[str, Any]]) -> dict[tuple[str, str | None], list[dict[str, Any]]]:
    """The operator's, by kind and namespace of what grants them."""
    roles = [o for o in objects if "rules" in o and not aggregated(o)]
    return {(o["kind"], o["metadata"].get("namespace")): o["rules"] for o in roles}


def aggregated(role: dict[str, Any]) -> list[str]:
    """The cluster's own roles that it is part of."""
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    labels = role["metadata"]["labels"]
    return [
        label.removeprefix(prefix) for label, value in labels.items() if label.startswith(prefix) and value == "true"
    ]


def bindings(objects: list[dict[str, Any]]) -> list[tuple[str, str | None, str, str, list[dict[str, str]]]]:
    return [
        (o["kind"], o["metadata"].get("namespace"), o["roleRef"]["kind"], o["roleRef"]["name"], o["subjects"])
        for o in objects
        if "roleRef" in o
    ]


def deployment(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (o for o in objects if o["kind"] == "Deployment")
    return found


def test_lint_finds_nothing(helm: Path) -> None:
    done = call(helm, "lint", str(CHART), "--strict", "--quiet", "--kube-version=1.34", *IMAGES)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--set=trainner.image=a", "trainner"),
        ("--set=trainer.imagePullSecret=a", "imagePullSecret"),
        ("--set=watchNamespaces=team-a", "watchNamespaces"),
        ("--set=watchNamespaces={Team_A}", "watchNamespaces"),
        ("--set=watchNamespaces={team.a}", "watchNamespaces"),
        ("--set=watchNamespaces={" + 64 * "a" + "}", "watchNamespaces"),
        # Whoever sets null takes the default away.
        ("--set=trainer=null", "missing property 'trainer'"),
        ("--set=trainer.serviceAccount=null", "missing property 'serviceAccount'"),
        ("--set=networkPolicy=null", "missing property 'networkPolicy'"),
        ("--set=imagePullPolicy=Sometimes", "imagePullPolicy"),
        ("--set=image=an image", "image"),
        ("--set=trainer.image=an image", "image"),
    ],
)
def test_a_value_that_the_chart_does_not_know_is_refused_by_name(helm: Path, option: str, named: str) -> None:
    done = call(helm, *RENDER, *IMAGES, option)
    assert done.returncode != 0
    assert named in done.stderr


@pytest.mark.parametrize("missing", ["image", "trainer.image"])
def test_an_image_that_is_not_named_is_asked_for_with_the_option_that_names_it(helm: Path, missing: str) -> None:
    done = call(helm, *RENDER, *(option for option in IMAGES if not option.startswith(f"--set={missing}=")))
    assert done.returncode != 0
    assert f"--set {missing}=" in done.stderr


def test_a_kubernetes_that_is_too_old_is_refused(helm: Path) -> None:
    done = call(helm, *RENDER[:-1], "--kube-version=1.29", *IMAGES)
    assert done.returncode != 0
    assert "requires kubeVersion: >=1.30.0-0" in done.stderr


def test_the_operator_may_do_in_all_namespaces_what_it_does_and_nothing_else(helm: Path) -> None:
    objects = render(helm)
    operator = [{"kind": "ServiceAccount", "name": "sft", "namespace": "system"}]
    assert rights(objects) == {("ClusterRole", None): RULES, ("Role", "system"): LEASE_RULES}
    assert bindings(objects) == [
        ("ClusterRoleBinding", None, "ClusterRole", "sft-jobs", operator),
        ("RoleBinding", "system", "Role", "sft-lease", operator),
    ]


def test_with_namespaces_named_it_has_no_right_outside_them(helm: Path) -> None:
    objects = render(helm, "--set=watchNamespaces={team-a,team-b}")
    operator = [{"kind": "ServiceAccount", "name": "sft", "namespace": "system"}]
    assert rights(objects) == {
        ("Role", "team-a"): RULES,
        ("Role", "team-b"): RULES,
        ("Role", "system"): LEASE_RULES,
    }
    assert sorted(bindings(objects)) == [
        ("RoleBinding", "system", "Role", "sft-lease", operator),
        ("RoleBinding", "team-a", "Role", "sft-jobs", operator),
        ("RoleBinding", "team-b", "Role", "sft-jobs", operator),
    ]


@pytest.mark.parametrize("option", ["--set=watchNamespaces={team-a}", "--set=imagePullPolicy=Always"])
def test_who_may_edit_a_namespace_may_edit_its_jobs_and_who_may_view_it_may_read_them(helm: Path, option: str) -> None:
    objects = render(helm, option)
    assert [(aggregated(o), o["rules"]) for o in objects if "rules" in o and aggregated(o)] == [
        (["admin", "edit"], EDIT_RULES),
        (["view"], VIEW_RULES),
    ]
    without = render(helm, option, "--set=aggregateClusterRoles=false")
    assert [o for o in without if "rules" in o and aggregated(o)] == []


def test_releases_of_one_name_in_two_namespaces_have_user_roles_of_their_own(helm: Path) -> None:
    def of_cluster(namespace: str) -> set[str]:
        objects = render(helm, "--set=watchNamespaces={team-a}", f"--namespace={namespace}")
        return {o["metadata"]["name"] for o in objects if "namespace" not in o["metadata"]}

    assert of_cluster("one") & of_cluster("two") == set()


def test_there_is_one_operator_at_a_time_and_its_pod_is_restricted(helm: Path) -> None:
    spec = deployment(render(helm))["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["volumes"] == [{"name": "scratch", "emptyDir": {}}]
    assert container["volumeMounts"] == [{"name": "scratch", "mountPath": "/tmp"}]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()


def test_values_become_the_options_of_the_operator(helm: Path) -> None:
    values = ("--set=watchNamespaces={team-a,team-b}", "--set=trainer.imagePullSecrets={first,second}")
    (container,) = deployment(render(helm, *values))["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/operator:1"
    assert container["command"] == ["python", "-m", "sft_operator"]
    assert container["args"] == [
        "--serve=:8080",
        "--trainer-image=registry.example/trainer:1",
        "--trainer-service-account=default",
        "--image-pull-secret=first",
        "--image-pull-secret=second",
        "--namespace=team-a",
        "--namespace=team-b",
    ]
    assert container["env"] == [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]


@pytest.mark.parametrize("name", ["1234", "true", "null", "0x10", "no"])
def test_a_name_that_yaml_takes_for_something_else_stays_a_name(helm: Path, name: str) -> None:
    values = ("imagePullSecrets[0]", "watchNamespaces[0]", "image", "trainer.image", "priorityClassName")
    options = [f"--set-string={value}={name}" for value in values]
    render_so = ("template", name, str(CHART), f"--namespace={name}", "--kube-version=1.34")
    done = call(helm, *render_so, *options, "--set=networkPolicy.trainerPods=true")
    assert done.returncode == 0, done.stderr
    objects = [document for document in yaml.safe_load_all(done.stdout) if document]
    found = [(path, value) for one in objects for path, value in leaves(one) if path[-1] in NAMES]
    assert {path[-1] for path, _ in found} == NAMES
    assert [(path, value) for path, value in found if not isinstance(value, str)] == []
    assert {(o["kind"], o["metadata"]["name"], o["metadata"].get("namespace")) for o in objects} == {
        *((kind, name, name) for kind in ("ServiceAccount", "Deployment", "NetworkPolicy")),
        ("NetworkPolicy", f"{name}-trainer-pods", name),
        *((kind, f"{name}-{what}", name) for kind in ("Role", "RoleBinding") for what in ("jobs", "lease")),
        *(("ClusterRole", f"{name}-{name}-{what}", None) for what in ("edit", "view")),
        ("Lease", "sft-operator", name),
    }


NAMES = {
    *("name", "namespace", "serviceAccountName", "priorityClassName", "image"),
    *("app.kubernetes.io/instance", "kubernetes.io/metadata.name"),
}


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if inner is None:
        return [(path, node)]
    return [found for key, value in inner for found in leaves(value, (*path, key))]


def test_only_the_operator_s_pod_gets_a_token_and_nothing_but_its_metrics_is_reached(helm: Path) -> None:
    objects = render(helm)
    (account,) = (o for o in objects if o["kind"] == "ServiceAccount")
    (policy,) = (o for o in objects if o["kind"] == "NetworkPolicy")
    template = deployment(objects)["spec"]["template"]
    assert account["automountServiceAccountToken"] is False
    assert template["spec"]["automountServiceAccountToken"] is True
    labels = {"app.kubernetes.io/name": "sft-operator", "app.kubernetes.io/instance": "sft"}
    assert labels.items() <= template["metadata"]["labels"].items()
    assert policy["spec"] == {
        "podSelector": {"matchLabels": labels},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": "metrics"}]}],
    }


def test_all_that_is_installed_stands_in_the_chart_so_that_uninstalling_takes_it_away(helm: Path) -> None:
    assert {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in render(helm)} == {
        ("ServiceAccount", "system", "sft"),
        ("ClusterRole", None, "sft-jobs"),
        ("ClusterRoleBinding", None, "sft-jobs"),
        ("ClusterRole", None, "sft-system-edit"),
        ("ClusterRole", None, "sft-system-view"),
        ("Role", "system", "sft-lease"),
        ("RoleBinding", "system", "sft-lease"),
        # The operator takes it by this name, and would make it again.
        ("Lease", "system", "sft-operator"),
        ("Deployment", "system", "sft"),
        ("NetworkPolicy", "system", "sft"),
    }


def test_trainer_pods_are_reached_by_each_other_and_their_progress_by_the_operator_and_prometheus(helm: Path) -> None:
    objects = render(
        helm,
        "--set=watchNamespaces={team-a}",
        "--set=networkPolicy.trainerPods=true",
        "--set=networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.team=monitoring",
    )
    policies = {o["metadata"].get("namespace"): o["spec"] for o in objects if o["kind"] == "NetworkPolicy"}
    prometheus = {"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}
    trainers = {"matchExpressions": [{"key": "sftjob.dev/job-uid", "operator": "Exists"}]}
    labels = {"app.kubernetes.io/name": "sft-operator", "app.kubernetes.io/instance": "sft"}
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "system"}},
        "podSelector": {"matchLabels": labels},
    }
    assert policies["system"]["ingress"] == [{"ports": [{"port": "metrics"}], "from": [prometheus]}]
    assert policies["team-a"] == {
        "podSelector": trainers,
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": trainers}]},
            {"ports": [{"port": "progress"}], "from": [operator, prometheus]},
        ],
    }
    assert names.JOB_UID_LABEL == "sftjob.dev/job-uid"


@contextmanager
def cluster_with(*deployments: dict[str, Any]) -> Iterator[str]:
    """The two answers that helm asks for, by the kubeconfig's text."""
    resource = {"name": "deployments", "namespaced": True, "kind": "Deployment", "verbs": ["list"]}
    answers = {
        "/apis/apps/v1": {"kind": "APIResourceList", "groupVersion": "apps/v1", "resources": [resource]},
        "/apis/apps/v1/deployments": {"kind": "DeploymentList", "apiVersion": "apps/v1", "items": deployments},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path.split("?")[0]]).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster = {"name": "it", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        context = {"name": "it", "context": {"cluster": "it", "user": "me"}}
        users = [{"name": "me", "user": {}}]
        yield json.dumps({"clusters": [cluster], "contexts": [context], "users": users, "current-context": "it"})
        server.shutdown()


@pytest.mark.parametrize(
    ("namespace", "name", "option", "is_refused"),
    [
        ("elsewhere", "sft-operator", "--set=imagePullPolicy=Always", True),
        ("elsewhere", "sft-operator", "--set=watchNamespaces={team-a}", False),
        # An upgrade meets itself.
        ("system", "sft-operator", "--set=imagePullPolicy=Always", False),
        ("elsewhere", "another", "--set=imagePullPolicy=Always", False),
    ],
)
def test_a_second_operator_for_all_namespaces_is_refused(
    helm: Path, tmp_path: Path, namespace: str, name: str, option: str, is_refused: bool
) -> None:
    labels = {"app.kubernetes.io/name": name}
    other = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "bare", "namespace": "team-a"}}
    found = other | {"metadata": {"name": "first", "namespace": namespace, "labels": labels}}
    with cluster_with(other, found) as kubeconfig:
        (tmp_path / "kubeconfig").write_text(kubeconfig)
        command = [str(helm), *RENDER, *IMAGES, option, "--dry-run=server"]
        environment = os.environ | {"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    told = (
        "watchNamespaces: the sft-operator first of namespace elsewhere would work on the same jobs; uninstall it "
        "(helm uninstall first --namespace elsewhere), or give each namespaces of its own: --set watchNamespaces="
    )
    assert (done.returncode != 0, told in done.stderr) == (is_refused, is_refused), done.stderr


def test_a_policy_for_trainer_pods_asks_for_the_namespaces_that_it_lies_in(helm: Path) -> None:
    done = call(helm, *RENDER, *IMAGES, "--set=networkPolicy.trainerPods=true")
    assert done.returncode != 0
    assert "networkPolicy.trainerPods: a policy lies in the namespaces of jobs; name them:" in done.stderr


def test_every_value_is_described_and_no_unknown_one_is_taken() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) == {*values, "global"}
    for path, node in with_fields(schema):
        assert node["additionalProperties"] is False, path
        assert [name for name, field in node["properties"].items() if not field.get("description")] == [], path


def with_fields(node: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every object of a schema that has fields of its own, with its path."""
    if not isinstance(node, dict):
        return []
    here = [(path, node)] if node.get("type") == "object" and "properties" in node else []
    return here + [found for name, inner in node.items() for found in with_fields(inner, f"{path}.{name}")]
