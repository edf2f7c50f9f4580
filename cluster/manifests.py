"""What runs in the cluster from its start: names, storage, training-operator."""

import shutil
import string
import subprocess
from pathlib import Path

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


def rendered(cache: Path) -> Path:
    return cache / "bin" / f"training-operator-{versions.TRAINING_OPERATOR}.yaml"


def render(cache: Path, module: Path, kubectl: Path) -> None:
    """Makes upstream's own manifests, which come with its Go module, name the local image."""
    unfinished = cache / "unfinished" / "training-operator-manifests"
    shutil.rmtree(unfinished, ignore_errors=True)
    # A module's files are read-only: only their content is taken.
    shutil.copytree(module / "manifests", unfinished / "manifests", copy_function=shutil.copyfile)
    kustomization = _fill("training-operator/kustomization.yaml", VERSION=versions.TRAINING_OPERATOR)
    (unfinished / "kustomization.yaml").write_text(kustomization)
    command = [str(kubectl), "kustomize", str(unfinished)]
    (unfinished / "rendered").write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    (unfinished / "rendered").rename(rendered(cache))
    shutil.rmtree(unfinished)


def _fill(name: str, **values: str) -> str:
    return string.Template((FOLDER / name).read_text()).substitute(values)
