"""The cluster tool run as a user runs it, and what a machine looks like with and without a cluster."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PATIENCE_SECONDS = 900

needs_root_on_linux = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="a cluster without Docker is built by root on Linux"
)


def run_tool(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    """`python -m cluster ...`, with what it says on both streams as one."""
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS * 3,  # the first one builds everything
        **more,
    )


SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""What kubelet and kube-proxy set."""
FOLDERS = ("/run", "/run/netns", "/var/lib", "/var/log", "/usr/libexec", "/opt", "/etc", "/etc/cni")
"""Where programs of a cluster write that run outside containers."""


class Machine:
    """What a cluster could leave behind, as this machine has it now."""

    def __init__(self) -> None:
        self.processes, self.parents = _processes()
        self.mounts = set(Path("/proc/mounts").read_text().splitlines())
        self.links = set(_lines("ip", "-brief", "address"))
        self.routes = set(_lines("ip", "route", "show", "table", "all"))
        self.rules = {line for save in ("iptables-save", "ip6tables-save") for line in _rules(save)}
        self.ports = {
            line.split()[4]: {int(pid) for pid in re.findall(r"pid=(\d+)", line)} for line in _lines("ss", "-Hltunp")
        }
        self.sysctls = {name: Path("/proc/sys", name).read_text() for name in SYSCTLS}
        # Unlike `glob`, `os.walk` doesn't mind what goes meanwhile.
        self.groups = {parent for parent, _, _ in os.walk("/sys/fs/cgroup") if parent.endswith("/sftjob")}
        self.files = {str(path) for folder in FOLDERS for path in Path(folder).glob("*")}

    def more_than(self, before: "Machine") -> dict[str, object]:
        """What is here and wasn't, or is not what it was; empty where nothing is left of a cluster."""
        found: dict[str, object] = {
            name: value - getattr(before, name)
            for name, value in vars(self).items()
            if isinstance(value, set) and value - getattr(before, name)
        }
        ours = self.processes.keys() - before.processes.keys() - self._of_others(before)
        if ours:
            found["processes"] = {pid: self.processes[pid] for pid in ours}
        ports = {port for port in self.ports.keys() - before.ports.keys() if self.ports[port] <= ours}
        if ports:
            found["ports"] = ports
        if self.sysctls != before.sysctls:
            found["sysctls"] = self.sysctls
        return found

    def _of_others(self, before: "Machine") -> set[int]:
        """Started by what was here before and is not this test: another user's work. What a cluster leaves has no
        parent but init, or this test."""
        here = set(_line_of(os.getpid(), self.parents))
        others = before.processes.keys() - here - {1}
        return {pid for pid in self.processes if others & set(_line_of(pid, self.parents)[1:])}


def assert_nothing_is_left(before: Machine) -> None:
    """Processes of others come and go: only what stays is ours."""
    deadline = time.monotonic() + 300
    look = Machine()
    while left := look.more_than(before):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
        earlier, look = look.processes.keys() | before.processes.keys(), Machine()
        look.processes = {pid: command for pid, command in look.processes.items() if pid in earlier}


def _line_of(pid: int, parents: dict[int, int]) -> list[int]:
    """Itself, its parent, and so on."""
    line = [pid]
    while line[-1] in parents:
        line.append(parents[line[-1]])
    return line


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _rules(save: str) -> list[str]:
    return [f"{save}: {line}" for line in _lines(save) if line.startswith("-A") or line.split()[1:2] == ["-"]]


def _processes() -> tuple[dict[int, str], dict[int, int]]:
    """Command and parent of each."""
    commands, parents = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text().replace("\0", " ").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if command:  # neither a zombie nor of the kernel
            commands[int(folder.name)], parents[int(folder.name)] = command, parent
    return commands, parents


class Cluster:
    """The cluster that is up, spoken to as a user does."""

    image = "localhost:5000/sft-trainer:dev"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        told = self.kubectl("get", "nodes", "--output=jsonpath={.items[*].metadata.name}")
        self.nodes = sorted(told.split())

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = [str(self.folder / "bin" / "kubectl"), f"--kubeconfig={self.folder / 'kubeconfig'}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        listing = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--filename=-", stdin=json.dumps(listing))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "--output=json"))
        return found

    def phase_of(self, pod: str) -> str:
        """Waits for its end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (phase := str(self.get("pod", pod)["status"].get("phase"))) not in ("Succeeded", "Failed"):
            assert time.monotonic() < deadline, self.kubectl("describe", "pod", pod)
            time.sleep(0.5)
        return phase


def claim(name: str, *, modes: tuple[str, ...] = ("ReadWriteOnce",)) -> dict[str, Any]:
    spec = {"accessModes": list(modes), "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def pod(
    name: str,
    command: list[str],
    *,
    claims: dict[str, str] | None = None,
    node: str | None = None,
    fs_group: int | None = None,
) -> dict[str, Any]:
    """Of the trainer's image, as strict as Pod Security `restricted` asks; `claims` maps a claim to its mount point."""
    claims = claims or {}
    container = {
        "name": "main",
        "image": Cluster.image,
        "command": command,
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in claims.items()],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": security | ({"fsGroup": fs_group} if fs_group else {}),
        "containers": [container],
        "volumes": [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims],
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
