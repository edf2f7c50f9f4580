"""Where the versions of all that a local cluster is made of stand: Go modules in their go.mod, the rest here."""

import hashlib
import re
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
TRAINING_OPERATOR_MODULE = PROGRAMS / "training-operator"
MINIO_MODULE = PROGRAMS / "minio"
KUEUE_MODULE = PROGRAMS / "kueue"


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
MINIO = _required("github.com/minio/minio", by=MINIO_MODULE)
TRAINING_OPERATOR = _required("github.com/kubeflow/training-operator", by=TRAINING_OPERATOR_MODULE)
KUEUE = _required("sigs.k8s.io/kueue", by=KUEUE_MODULE)

_GO_LINE = re.findall(r"^go (\d+)\.(\d+)", (TRAINING_OPERATOR_MODULE / "go.mod").read_text(), re.MULTILINE)
GO = (int(_GO_LINE[0][0]), int(_GO_LINE[0][1]))
"""The oldest that builds all: training-operator asks for the newest."""

KIND = "v0.30.0"
KIND_NODE_IMAGE = "kindest/node:v1.34.0@sha256:7416a61b42b1662ca6ca89f02028ac133a309a2a30ba309614e8ec94d976dc5a"
"""The default of this version of kind, named in its pkg/apis/config/defaults/image.go."""
KIND_REGISTRY_IMAGE = "registry:3.0.0@sha256:6c5666b861f3505b116bb9aa9b25175e71210414bd010d92035ff64018f9457e"

DEBIAN_PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "openssl": "openssl",
    "sysctl": "procps",
}
"""By the program that tells whether it is there."""

IMAGE_PACKAGES = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}
"""The same, of what only `python -m cluster images` needs."""
