"""The cluster's own authority, and a certificate and kubeconfig for each program that speaks to the API server."""

import base64
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster import network

_CURVE = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
_DAYS = 3650


def make(folder: Path, *, nodes: int) -> None:
    """Keeps what is there, so that a second node can come later."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "ca.crt").exists():
        _openssl(
            f"req -x509 {_CURVE} -keyout {folder}/ca.key -subj /CN=sftjob-cluster -days {_DAYS} -out {folder}/ca.crt"
        )
        _openssl(f"ecparam -genkey -name prime256v1 -noout -out {folder}/accounts.key")
        _openssl(f"ec -in {folder}/accounts.key -pubout -out {folder}/accounts.pub")
    services = [f"DNS:kubernetes{suffix}" for suffix in ("", ".default", ".default.svc", ".default.svc.cluster.local")]
    addresses = [f"IP:{network.node_address(1)}", f"IP:{network.KUBERNETES_SERVICE}", "IP:127.0.0.1", "DNS:localhost"]
    certificate(folder, "apiserver", "kube-apiserver", names=[*addresses, *services])
    certificate(folder, "admin", "admin", organisation="system:masters")
    for program in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        certificate(folder, program, f"system:{program}")
    for node in range(1, nodes + 1):
        user = f"system:node:{node_name(node)}"
        certificate(folder, f"kubelet-{node}", user, organisation="system:nodes")


def node_name(node: int) -> str:
    return f"sftjob-{node}"


def certificate(folder: Path, name: str, user: str, *, organisation: str = "sftjob", names: Sequence[str] = ()) -> None:
    """Writes `name`.key, .crt and .kubeconfig."""
    if (folder / f"{name}.kubeconfig").exists():
        return
    extensions = folder / f"{name}.extensions"
    alternatives = ",".join(names or [f"DNS:{name}"])
    extensions.write_text(f"extendedKeyUsage=clientAuth,serverAuth\nsubjectAltName={alternatives}\n")
    request = folder / f"{name}.csr"
    _openssl(f"req {_CURVE} -keyout {folder}/{name}.key -subj /O={organisation}/CN={user} -out {request}")
    _openssl(
        f"x509 -req -in {request} -CA {folder}/ca.crt -CAkey {folder}/ca.key -CAcreateserial "
        f"-days {_DAYS} -out {folder}/{name}.crt -extfile {extensions}"
    )
    (folder / f"{name}.kubeconfig").write_text(yaml.safe_dump(kubeconfig(folder, name)))
    (folder / f"{name}.kubeconfig").chmod(0o600)


def kubeconfig(folder: Path, name: str) -> dict[str, Any]:
    def content(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    cluster = {"server": network.API_SERVER, "certificate-authority-data": content("ca.crt")}
    user = {"client-certificate-data": content(f"{name}.crt"), "client-key-data": content(f"{name}.key")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sftjob", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "sftjob", "context": {"cluster": "sftjob", "user": name}}],
        "current-context": "sftjob",
    }


def _openssl(arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], check=True, capture_output=True)
