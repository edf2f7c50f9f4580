"""A built cluster's start. What lives already is left alone, so a second call does nothing and a later one mends."""

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster import archives, certificates, manifests, network, node
from cluster.build import binary_of, program_of
from cluster.parts import Part, log_file, parts, pid_of, start
from cluster.place import LINK, Record

PATIENCE_SECONDS = 300
DEPLOYMENTS = (("kube-system", "coredns"), ("kube-system", "provisioner"), ("kubeflow", "training-operator"))


class StartFailed(Exception):
    pass


def up(folder: Path, cache: Path, record: Record) -> Iterator[str]:
    """Yields what it waits for. What it changes on this machine is in `record` before it is changed.

    Raises StartFailed with what did not come, or with the part that ended and its log's last lines.
    """
    _prepare(folder, cache, record)
    yield "certificates"
    certificates.make(folder / "pki", nodes=record.nodes)
    kubeconfig_path(folder).write_bytes((folder / "pki" / "admin.kubeconfig").read_bytes())
    kubeconfig_path(folder).chmod(0o600)
    yield "programs"
    every = parts(folder, cache, nodes=record.nodes)
    if network.BRIDGE not in network.links():
        network.run(network.bridge_commands())
    holders = _start_nodes(folder, every)
    _start(folder, [part for part in every if not part.needs_api], holders)
    yield "API server"
    _wait(
        lambda: kubectl(folder, cache, "get", "--raw=/readyz").returncode == 0, "API server: not ready", folder, every
    )
    _start(folder, every, holders)
    with ThreadPoolExecutor() as pool:
        applied = pool.submit(_apply, folder, cache)
        for number, pid in holders.items():
            yield f"images on {certificates.node_name(number)}"
            _wait(lambda pid=pid: node.ctr(pid, "version").returncode == 0, "containerd: no answer", folder, every)
            _import_images(pid, cache, ("pause",) if number > 1 else archives.IN_PODS)
        applied.result()
    for number in holders:
        yield certificates.node_name(number)
        _wait_for(folder, cache, every, "node", certificates.node_name(number), "condition=Ready")
    for namespace, name in DEPLOYMENTS:
        yield name
        _wait_for(folder, cache, every, "deployment", name, "condition=Available", f"--namespace={namespace}")
    record.ready = True
    record.write(folder)


def kubeconfig_path(folder: Path) -> Path:
    return folder / "kubeconfig"


def kubectl(folder: Path, cache: Path, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [binary_of(cache, "kubectl"), f"--kubeconfig={kubeconfig_path(folder)}", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True)


def _prepare(folder: Path, cache: Path, record: Record) -> None:
    if not record.sysctls:
        record.sysctls = {name: Path("/proc/sys", name).read_text() for name in node.SYSCTLS}
        record.made_folders = [path for path in node.PRIVATE_FOLDERS if not Path(path).exists()]
    record.write(folder)
    if not LINK.is_symlink():
        LINK.symlink_to(folder)
    for path in node.PRIVATE_FOLDERS:
        Path(path).mkdir(parents=True, exist_ok=True)
    (folder / "claims").mkdir(exist_ok=True)
    (folder / "resolv.conf").write_text(node.nameservers(*(f.read_text() for f in node.RESOLV_CONFS if f.exists())))
    (folder / "registry.yaml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {cache}/registry}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{network.REGISTRY}'}}\nlog: {{level: warn}}\n"
    )
    for number in range(1, record.nodes + 1):
        node.write_files(folder, number)


def _start_nodes(folder: Path, every: list[Part]) -> dict[int, int]:
    """Returns for each node the process that holds it."""
    holders = {}
    for part in every:
        if not part.holds_node:
            continue
        if pid_of(part) is None:
            network.remove_link(network.cable(part.node))  # of a node that died
            start(part, folder, holder=None)
            _wait(lambda part=part: pid_of(part) is not None, f"{part.name}: no namespaces", folder, [])
            network.run(network.node_commands(part.node, pid=pid_of(part)))
        holders[part.node] = pid_of(part)
    network.run(network.pod_route_commands(holders))
    return holders


def _start(folder: Path, some: list[Part], holders: dict[int, int]) -> None:
    for part in some:
        if pid_of(part) is None:
            start(part, folder, holder=holders[part.node])
            _wait(lambda part=part: pid_of(part) is not None, f"{part.name}: does not start", folder, [])


def _import_images(pid: int, cache: Path, names: tuple[str, ...]) -> None:
    there = node.ctr(pid, "images", "list", "--quiet").stdout.split()
    for program in map(program_of, names):
        if archives.image_name(program) in there:
            continue
        done = node.ctr(pid, "images", "import", str(archives.archive_path(cache, program)))
        if done.returncode:
            raise StartFailed(f"{archives.image_name(program)}: containerd doesn't take it: {done.stderr.strip()}")


def _apply(folder: Path, cache: Path) -> None:
    coredns, provisioner = (archives.image_name(program_of(name)) for name in ("coredns", "provisioner"))
    for document in (
        manifests.coredns(coredns, nameservers=(folder / "resolv.conf").read_text()),
        manifests.storage(provisioner, claims=folder / "claims"),
        manifests.training_operator(cache),
    ):
        done = kubectl(folder, cache, "apply", "--server-side", "--force-conflicts", "--filename=-", stdin=document)
        if done.returncode:
            raise StartFailed(f"kubectl apply: {done.stderr.strip()}")


def _wait_for(folder: Path, cache: Path, every: list[Part], kind: str, name: str, condition: str, *more: str) -> None:
    command = ("wait", f"--for={condition}", f"{kind}/{name}", "--timeout=2s", *more)
    _wait(lambda: kubectl(folder, cache, *command).returncode == 0, f"{kind} {name}: not {condition}", folder, every)


def _wait(is_so: Callable[[], bool], otherwise: str, folder: Path, alive: list[Part]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        for part in alive:
            if log_file(folder, part).exists() and pid_of(part) is None:
                raise StartFailed(
                    f"{part.name} ended: {log_file(folder, part)}:\n{_last_lines(log_file(folder, part))}"
                )
        if time.monotonic() > deadline:
            raise StartFailed(f"{otherwise} after {PATIENCE_SECONDS} s; logs in {folder / 'log'}")
        time.sleep(0.1)


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])
