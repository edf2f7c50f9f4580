"""What runs in the cluster from its start: names, storage, training-operator; and Kueue, where it is asked for."""

import shutil
import string
import subprocess
from pathlib import Path
from typing import Any

import yaml

from cluster import network, versions

DEPLOYMENTS = {"coredns": "kube-system", "provisioner": "kube-system", "training-operator": "kubeflow"}
"""By name, their namespace."""

FOLDER = Path(__file__).parent / "manifests"


def coredns(image: str, *, nameservers: str) -> str:
    """Names of the outside are asked of the machine's own servers, where it has any that pods can reach."""
    forward = "forward . /etc/resolv.conf" if nameservers else ""
    return _fill("coredns.yaml", IMAGE=image, ADDRESS=network.DNS_SERVICE, FORWARD=forward)


def storage(image: str, *, claims: Path) -> str:
    return _fill("storage.yaml", IMAGE=image, CLAIMS=str(claims))


def training_operator(cache: Path) -> str:
    return rendered(cache).read_text()


def kueue(cache: Path) -> str:
    """Of its webhooks those alone that its configuration serves: any other would refuse the objects of others."""
    documents = [document for document in yaml.safe_load_all(kueue_rendered(cache).read_text()) if document]
    for document in documents:
        if document["kind"].endswith("WebhookConfiguration"):
            document["webhooks"] = [webhook for webhook in document["webhooks"] if _is_served(webhook)]
    # Without them nothing else of the cluster is asked of Kueue.
    return str(yaml.safe_dump_all([document for document in documents if document["kind"] != "APIService"]))


def rendered(cache: Path) -> Path:
    return cache / "bin" / f"training-operator-{versions.TRAINING_OPERATOR}.yaml"


def kueue_rendered(cache: Path) -> Path:
    return cache / "bin" / f"kueue-{versions.KUEUE}.yaml"


def render_training_operator(cache: Path, module: Path, kubectl: Path) -> None:
    kustomization = _fill("training-operator/kustomization.yaml", VERSION=versions.TRAINING_OPERATOR)
    _render(cache, module / "manifests", kubectl, kustomization=kustomization, target=rendered(cache))


def render_kueue(cache: Path, module: Path, kubectl: Path) -> None:
    kustomization = _fill("kueue/kustomization.yaml", VERSION=versions.KUEUE)
    _render(cache, module / "config", kubectl, kustomization=kustomization, target=kueue_rendered(cache))


def _render(cache: Path, folder: Path, kubectl: Path, *, kustomization: str, target: Path) -> None:
    """Makes upstream's own manifests, a folder of its Go module, name the local image."""
    unfinished = cache / "unfinished" / "manifests"
    shutil.rmtree(unfinished, ignore_errors=True)
    # A module's files are read-only: only their content is taken.
    shutil.copytree(folder, unfinished / folder.name, copy_function=shutil.copyfile)
    (unfinished / "kustomization.yaml").write_text(kustomization)
    command = [str(kubectl), "kustomize", str(unfinished)]
    (unfinished / "rendered").write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    (unfinished / "rendered").rename(target)
    shutil.rmtree(unfinished)


def _is_served(webhook: dict[str, Any]) -> bool:
    resources = {
        (group, name) for rule in webhook["rules"] for group in rule["apiGroups"] for name in rule["resources"]
    }
    return all(group == "kueue.x-k8s.io" or name == "pytorchjobs" for group, name in resources)


def _fill(name: str, **values: str) -> str:
    return string.Template((FOLDER / name).read_text()).substitute(values)
