"""The programs of a built cluster: what each is started with, whether it lives, and its start."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster import cgroups, network, node
from cluster.build import binary_of


@dataclass(frozen=True)
class Part:
    name: str
    node: int
    """In whose namespaces it runs."""
    command: list[str]
    program: str
    """The file name of what runs in the end; `command` may first pass through others."""
    holds_node: bool = False
    is_late: bool = False
    """It gives up where the API server or containerd doesn't answer yet."""


LATE = ("kube-controller-manager", "kube-scheduler", "kubelet-")


def parts(folder: Path, cache: Path, *, nodes: int) -> list[Part]:
    """In the order of their start."""
    found = []
    for number in range(1, nodes + 1):
        pause = binary_of(cache, "pause")
        command = node.hold_command(folder, number, pause)
        found.append(Part(f"node-{number}", number, command, pause.name, holds_node=True))
        if number == 1:
            found += [_part(name, 1, command) for name, command in _control_plane(folder, cache).items()]
        commands = {
            "containerd": ["containerd", f"--config={node.folder_of(folder, number)}/containerd.toml"],
            "kubelet": node.kubelet_command(folder, number, binary_of(cache, "kubelet")),
            "kube-proxy": node.proxy_command(folder, number, binary_of(cache, "kube-proxy")),
        }
        found += [_part(f"{name}-{number}", number, command) for name, command in commands.items()]
    return found


def _part(name: str, number: int, command: list[str]) -> Part:
    # What a link like /usr/bin/etcd stands for is what /proc will tell.
    program = Path(shutil.which(command[0]) or command[0]).resolve().name
    return Part(name, number, command, program, is_late=name.startswith(LATE))


def _control_plane(folder: Path, cache: Path) -> dict[str, list[str]]:
    pki = folder / "pki"
    etcd = "http://127.0.0.1:2379"
    peers = "http://127.0.0.1:2380"
    return {
        "etcd": [
            "etcd",
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            # A cluster for a while: a power cut may take it.
            "--unsafe-no-fsync",
        ],
        "kube-apiserver": [
            str(binary_of(cache, "kube-apiserver")),
            f"--etcd-servers={etcd}",
            "--secure-port=6443",
            f"--bind-address={network.node_address(1)}",
            f"--advertise-address={network.node_address(1)}",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/admin.crt",
            f"--kubelet-client-key={pki}/admin.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={pki}/accounts.pub",
            f"--service-account-signing-key-file={pki}/accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-cluster-ip-range={network.SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
        ],
        "kube-controller-manager": [
            str(binary_of(cache, "kube-controller-manager")),
            f"--kubeconfig={pki}/kube-controller-manager.kubeconfig",
            f"--service-account-private-key-file={pki}/accounts.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--flex-volume-plugin-dir={folder}/volume-plugins",
        ],
        "kube-scheduler": [
            str(binary_of(cache, "kube-scheduler")),
            f"--kubeconfig={pki}/kube-scheduler.kubeconfig",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ],
        "registry": [str(binary_of(cache, "registry")), "serve", f"{folder}/registry.yaml"],
    }


def log_file(folder: Path, part: Part) -> Path:
    return folder / "log" / f"{part.name}.log"


def pid_of(part: Part) -> int | None:
    """As this machine counts; None where it doesn't live."""
    programs = cgroups.processes(part.name)
    return next((pid for pid, program in programs.items() if program == part.program), None)


def is_alive(part: Part) -> bool:
    return pid_of(part) is not None


def start(part: Part, folder: Path, *, holder: int | None) -> subprocess.Popen[bytes]:
    """`holder` is the process that holds the part's node; None for the holder itself.

    The process returned lives as long as the part does.
    """
    log = log_file(folder, part)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = part.command if holder is None else [*node.enter_command(holder), *part.command]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            # The registry would look for a collector of traces.
            env=os.environ | {"OTEL_TRACES_EXPORTER": "none"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=cgroups.joining(part.name),
        )
