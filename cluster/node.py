"""A node: namespaces of its own for network, mounts and processes, held by one process, and what runs in them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from cluster import archives, cgroups, network
from cluster.build import program_of
from cluster.certificates import node_name
from cluster.client import StartFailed

PRIVATE_FOLDERS = (
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/cni",
    "/var/log/pods",
    "/var/log/containers",
    "/run/containerd",
)
"""Paths that kubelet, containerd or the network plugins have built in; each node sees a folder of its own there."""

RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))

SYSCTLS = (
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""Of /proc/sys, what the cluster changes for the whole machine: forwarding is ours, the rest the kubelet sets."""


def folder_of(folder: Path, node: int) -> Path:
    return folder / f"node-{node}"


def hold_command(folder: Path, node: int, pause: Path) -> list[str]:
    """Process 1 of the node. When it ends, the kernel ends all of the node's processes and drops its mounts."""
    binds = [f"mount --bind {_private(folder, node, path)} {path}" for path in PRIVATE_FOLDERS]
    # Shared among the node's own processes: what the kubelet mounts must be seen by containerd.
    script = " && ".join([*binds, "mount --make-rshared /", f"exec {pause}"])
    return [
        *("unshare", "--mount", "--propagation", "private", "--net", "--pid", "--fork", "--kill-child"),
        *("--mount-proc", "sh", "-c", script),
    ]


def _private(folder: Path, node: int, path: str) -> Path:
    if path == "/var/lib/containerd":
        return images_folder(folder.parent, node)
    return folder_of(folder, node) / path.strip("/").replace("/", "-")


def images_folder(cache: Path, node: int) -> Path:
    """Outlives the cluster: gigabytes that the next one would unpack again. `clean` deletes it."""
    return cache / f"images-of-node-{node}"


def enter_command(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--"]


def write_files(folder: Path, node: int) -> None:
    own = folder_of(folder, node)
    for path in PRIVATE_FOLDERS:
        _private(folder, node, path).mkdir(parents=True, exist_ok=True)
    for part in ("network", f"registries/{archives.REGISTRY_NAME}"):
        (own / part).mkdir(parents=True, exist_ok=True)
    cgroups.make_for_pods(node)
    (own / "containerd.toml").write_text(containerd_toml(own))
    (own / f"registries/{archives.REGISTRY_NAME}/hosts.toml").write_text(
        f'server = "http://{network.REGISTRY}"\n'
        f'[host."http://{network.REGISTRY}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    (own / "network/10-sftjob.conflist").write_text(json.dumps(pod_network(node), indent=1))
    (own / "kubelet.yaml").write_text(yaml.safe_dump(kubelet_configuration(folder, node)))


def containerd_toml(own: Path) -> str:
    return f"""\
version = 2
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{archives.image_name(program_of("pause"))}"
  # Without CAP_SYS_RESOURCE a sandbox would die of its OOM score.
  restrict_oom_score_adj = true
  # Else it leaves files in this machine's own /run/netns.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{own}/network"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{own}/registries"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    # A pulled layer is kept unpacked only.
    discard_unpacked_layers = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""


def pod_network(node: int) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": network.pods_of(node)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "pods0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "sftjob", "plugins": [bridge, ports]}


def kubelet_configuration(folder: Path, node: int) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.node_address(node),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{folder}/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups.for_pods(node),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [network.DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "resolvConf": f"{folder}/resolv.conf",
        "serializeImagePulls": False,
        # Images lie here only: one that was deleted for its room could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"imagefs.available": "1%", "nodefs.available": "1%", "memory.available": "100Mi"},
    }


def nameservers(*files: str) -> str:
    """The first text of a resolv.conf that names servers which pods can reach: a loopback is the host's own."""
    for text in files:
        lines = [line for line in text.splitlines() if line.startswith(("nameserver", "search", "options"))]
        servers = [line for line in lines if line.startswith("nameserver")]
        if servers and not any(line.split()[1].startswith(("127.", "::1")) for line in servers):
            return "\n".join(lines) + "\n"
    return ""


def kubelet_command(folder: Path, node: int, binary: Path) -> list[str]:
    return [
        str(binary),
        f"--config={folder_of(folder, node)}/kubelet.yaml",
        f"--kubeconfig={folder}/pki/kubelet-{node}.kubeconfig",
        f"--hostname-override={node_name(node)}",
        f"--node-ip={network.node_address(node)}",
        "--root-dir=/var/lib/kubelet",
        f"--node-labels=sftjob.dev/node={node}",
    ]


def proxy_command(folder: Path, node: int, binary: Path) -> list[str]:
    return [
        str(binary),
        f"--kubeconfig={folder}/pki/kube-proxy.kubeconfig",
        "--proxy-mode=iptables",
        # Answers come back through the node whatever bridges do with them (br_netfilter need not be loaded).
        "--masquerade-all=true",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
        f"--hostname-override={node_name(node)}",
        f"--bind-address={network.node_address(node)}",
        "--metrics-bind-address=127.0.0.1:10249",
        "--healthz-bind-address=127.0.0.1:10256",
    ]


class Containerd:
    """The one of the node that process `holder` holds."""

    def __init__(self, holder: int) -> None:
        self._command = [*enter_command(holder), "ctr", "--namespace=k8s.io"]

    def answers(self) -> bool:
        return self._run("version").returncode == 0

    def images(self) -> list[str]:
        return self._run("images", "list", "--quiet").stdout.split()

    def load(self, archive: Path) -> None:
        """Raises StartFailed with containerd's words."""
        done = self._run("images", "import", str(archive))
        if done.returncode:
            raise StartFailed(f"{archive}: containerd doesn't take it: {done.stderr.strip()}")

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._command, *arguments], capture_output=True, text=True)
