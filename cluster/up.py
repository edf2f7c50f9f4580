"""A built cluster's start. What lives already is left alone, so a second call does nothing and a later one mends."""

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from cluster import archives, certificates, manifests, network, node
from cluster.build import binary_of, program_of
from cluster.client import Client, StartFailed
from cluster.parts import Part, is_alive, log_file, parts, pid_of, start
from cluster.place import LINK, Record, kubeconfig_path

PATIENCE_SECONDS = 300


def up(folder: Path, cache: Path, record: Record) -> Iterator[str]:
    """Yields what it waits for. What it changes on this machine is in `record` before it is changed.

    Raises StartFailed with what did not come, or with the part that ended and its log's last lines.
    """
    _prepare(folder, cache, record)
    yield "certificates"
    certificates.make(folder / "pki", nodes=record.nodes)
    kubeconfig = kubeconfig_path(folder)
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_bytes((folder / "pki" / "admin.kubeconfig").read_bytes())
    client = Client(binary_of(cache, "kubectl"), kubeconfig=kubeconfig)
    yield "programs"
    every = parts(folder, cache, nodes=record.nodes)
    _drop_untagged(folder, cache, next(part for part in every if part.name == "registry"))
    starter = _Starter(folder, every)
    starter.start_nodes()
    starter.start(with_api=False)
    yield "API server"
    starter.wait(client.is_ready, otherwise="API server: not ready")
    starter.start(with_api=True)
    with ThreadPoolExecutor() as pool:
        applied = pool.map(client.apply, _documents(folder, cache))
        for number, holder in starter.holders.items():
            yield f"images on {certificates.node_name(number)}"
            starter.wait(node.Containerd(holder).answers, otherwise=f"containerd-{number}: no answer")
            _import_images(node.Containerd(holder), cache, archives.IN_PODS if number == 1 else ("pause",))
        list(applied)  # raises what one of them raised
    nodes = [(f"node/{certificates.node_name(number)}", "Ready", "default") for number in starter.holders]
    deployments = [(f"deployment/{name}", "Available", space) for name, space in manifests.DEPLOYMENTS.items()]
    for name, condition, space in [*nodes, *deployments]:
        yield name
        has_condition = partial(client.has_condition, name, condition, namespace=space)
        starter.wait(has_condition, otherwise=f"{name}: not {condition}")
    record.ready = True
    record.write(folder)


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
    texts = [path.read_text() for path in node.RESOLV_CONFS if path.exists()]
    (folder / "resolv.conf").write_text(node.nameservers(*texts))
    (folder / "registry.yaml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {cache}/registry}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{network.REGISTRY}'}}\nlog: {{level: warn}}\n"
    )
    for number in range(1, record.nodes + 1):
        node.write_files(folder, number)


def _drop_untagged(folder: Path, cache: Path, registry: Part) -> None:
    """Layers of images that were pushed anew since; the registry must not run while it looks for them."""
    if (cache / "registry").exists() and not is_alive(registry):
        command = [registry.command[0], "garbage-collect", "--delete-untagged", f"{folder}/registry.yaml"]
        subprocess.run(command, check=True, capture_output=True)


def _documents(folder: Path, cache: Path) -> list[str]:
    coredns, provisioner = (archives.image_name(program_of(name)) for name in ("coredns", "provisioner"))
    return [
        manifests.coredns(coredns, nameservers=(folder / "resolv.conf").read_text()),
        manifests.storage(provisioner, claims=folder / "claims"),
        manifests.training_operator(cache),
    ]


def _import_images(containerd: node.Containerd, cache: Path, names: tuple[str, ...]) -> None:
    there = containerd.images()
    for program in map(program_of, names):
        if archives.image_name(program) not in there:
            containerd.load(archives.archive_path(cache, program))


class _Starter:
    """Starts parts that don't live, and waits, but not for what has died."""

    def __init__(self, folder: Path, every: list[Part]) -> None:
        self._folder = folder
        self._every = every
        self._started: list[Part] = []
        self.holders: dict[int, int] = {}
        """For each node the process that holds it."""

    def start_nodes(self) -> None:
        if network.BRIDGE not in network.links():
            network.run(network.bridge_commands())
        for part in self._every:
            if part.holds_node:
                pid = pid_of(part)
                self.holders[part.node] = self._start_node(part) if pid is None else pid
        network.run(network.pod_route_commands(self.holders))

    def _start_node(self, part: Part) -> int:
        network.remove_link(network.cable(part.node))  # of a node that died
        start(part, self._folder, holder=None)
        self.wait(partial(is_alive, part), otherwise=f"{part.name}: no namespaces")
        pid = pid_of(part)
        assert pid is not None
        network.run(network.node_commands(part.node, pid=pid))
        return pid

    def start(self, *, with_api: bool) -> None:
        """Those that need the API server, or the others."""
        for part in self._every:
            if part.needs_api is with_api and not part.holds_node and not is_alive(part):
                start(part, self._folder, holder=self.holders[part.node])
                self.wait(partial(is_alive, part), otherwise=f"{part.name}: does not start")
                self._started.append(part)

    def wait(self, is_so: Callable[[], bool], *, otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            for part in self._started:
                if not is_alive(part):
                    log = log_file(self._folder, part)
                    raise StartFailed(f"{part.name} ended: {log}:\n{_last_lines(log)}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{otherwise} after {PATIENCE_SECONDS} s; logs in {self._folder / 'log'}")
            time.sleep(0.1)


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])
