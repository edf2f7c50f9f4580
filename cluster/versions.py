"""Where the versions of all that a local cluster is made of stand: Go modules in their go.mod, the rest here."""

import hashlib
import re
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
TRAINING_OPERATOR_MODULE = PROGRAMS / "training-operator"


def _required(module: str, *, by: Path = PROGRAMS) -> str:
    (version,) = re.findall(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", (by / "go.mod").read_text(), re.MULTILINE)
    return str(version)


def digest(folder: Path) -> str:
    """Of a program of our own: another source is another version."""
    return hashlib.sha256((folder / "main.go").read_bytes()).hexdigest()[:8]


KUBERNETES = _required("k8s.io/kubernetes")
COREDNS = _required("github.com/coredns/coredns")
REGISTRY = _required("github.com/distribution/distribution/v3")
HELM = _required("helm.sh/helm/v3")
TRAINING_OPERATOR = _required("github.com/kubeflow/training-operator", by=TRAINING_OPERATOR_MODULE)

GO = (1, 26)
"""The oldest Go that training-operator of this version builds with."""

DEBIAN_PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "openssl": "openssl",
}
"""By the program that tells whether it is there."""

IMAGE_PACKAGES = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}
"""The same, of what only `python -m cluster images` needs."""
