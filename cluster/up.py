"""A built cluster's start. What lives already is left alone, so a second call does nothing and a later one mends."""

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from cluster import archives, certificates, manifests, network, node
from cluster.build import PROGRAMS, Program, binary_of, program_of
from cluster.client import Client, StartFailed
from cluster.parts import Part, is_alive, log_file, parts, pid_of, start
from cluster.place import Before, Record, claim_machine, kubeconfig_path, read_before

PATIENCE_SECONDS = 300


def up(folder: Path, cache: Path, record: Record) -> Iterator[str]:
    """Yields what it waits for.

    Raises StartFailed with what did not come, or with the part that ended and its log's last lines.
    """
    before = _read_before()
    claim_machine(folder, before)
    _write_files(folder, cache, record)
    yield "certificates"
    certificates.make(folder / "pki", nodes=record.nodes)
    kubeconfig = kubeconfig_path(folder)
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_bytes((folder / "pki" / "admin.kubeconfig").read_bytes())
    client = Client(binary_of(cache, "kubectl"), kubeconfig=kubeconfig)
    yield "programs"
    every = parts(folder, cache, nodes=record.nodes)
    _drop_untagged(folder, cache, next(part for part in every if part.name == "registry"))
    network.set_up_machine(forwarded_before=before.sysctls["net/ipv4/ip_forward"].strip() == "1")
    starter = _Starter(folder, every)
    starter.start_nodes()
    starter.start(late=False)
    yield "API server"
    starter.wait(client.is_ready, otherwise="API server: not ready")
    for number, holder in starter.holders.items():
        starter.wait(node.Containerd(holder).answers, otherwise=f"containerd-{number}: no answer")
    starter.start(late=True)
    programs = [program for program in PROGRAMS if program.in_pods]
    with ThreadPoolExecutor() as pool:
        applied = pool.map(client.apply, _documents(folder, cache))
        for number, holder in starter.holders.items():
            yield f"images on {certificates.node_name(number)}"
            _import_images(node.Containerd(holder), cache, programs if number == 1 else [program_of("pause")])
        list(applied)  # raises what one of them raised
    nodes = [(f"node/{certificates.node_name(number)}", "Ready", "default") for number in starter.holders]
    deployments = [(f"deployment/{name}", "Available", space) for name, space in manifests.DEPLOYMENTS.items()]
    for name, condition, space in [*nodes, *deployments]:
        yield name
        has_condition = partial(client.has_condition, name, condition, namespace=space)
        starter.wait(has_condition, otherwise=f"{name}: not {condition}")


def _read_before() -> Before:
    return read_before() or Before(
        sysctls={name: Path("/proc/sys", name).read_text() for name in node.SYSCTLS},
        missing_folders=[path for path in node.PRIVATE_FOLDERS if not Path(path).exists()],
    )


def _write_files(folder: Path, cache: Path, record: Record) -> None:
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


def _import_images(containerd: node.Containerd, cache: Path, programs: list[Program]) -> None:
    there = containerd.images()
    for program in programs:
        if archives.image_name(program) not in there:
            containerd.load(archives.archive_path(cache, program))


class _Starter:
    """Starts parts that don't live, and waits, but not when one has died."""

    def __init__(self, folder: Path, every: list[Part]) -> None:
        self._folder = folder
        self._every = every
        self._watched = [part for part in every if is_alive(part)]
        self.holders: dict[int, int] = {}
        """For each node the process that holds it."""

    def start_nodes(self) -> None:
        for part in self._every:
            if part.holds_node:
                if not is_alive(part):
                    network.remove_link(network.cable(part.node))  # of a node that died
                    self._start(part)
                pid = pid_of(part)
                assert pid is not None, "it is watched"
                network.set_up_node(part.node, pid=pid)
                self.holders[part.node] = pid
        network.set_up_routes(self.holders)

    def start(self, *, late: bool) -> None:
        for part in self._every:
            if part.is_late is late and not is_alive(part):
                self._start(part)

    def _start(self, part: Part) -> None:
        process = start(part, self._folder, holder=self.holders.get(part.node))
        while not is_alive(part):
            if process.poll() is not None:
                raise self._ended(part)
            time.sleep(0.01)
        self._watched.append(part)

    def wait(self, is_so: Callable[[], bool], *, otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            for part in self._watched:
                if not is_alive(part):
                    raise self._ended(part)
            if time.monotonic() > deadline:
                raise StartFailed(f"{otherwise} after {PATIENCE_SECONDS} s; logs in {self._folder / 'log'}")
            time.sleep(0.1)

    def _ended(self, part: Part) -> StartFailed:
        log = log_file(self._folder, part)
        return StartFailed(f"{part.name} ended: {log}:\n{_last_lines(log)}")


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])
