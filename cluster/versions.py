"""Every version that the local cluster is made of; Kubernetes' own is read from the go.mod that pins its modules."""

import re
from pathlib import Path

KUBERNETES_MODULE = Path(__file__).parent / "kubernetes"
(KUBERNETES,) = re.findall(r"k8s\.io/kubernetes (v\S+)", (KUBERNETES_MODULE / "go.mod").read_text())
TRAINING_OPERATOR = "v1.9.4"
COREDNS = "v1.12.0"
REGISTRY = "v3.0.0"
HELM = "v3.19.0"

GO = (1, 24)
"""The oldest Go that Kubernetes of this version builds with."""

DEBIAN_PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
}
"""By the program that tells whether it is there."""
