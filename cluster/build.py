"""The cluster's programs, built from Go modules into the user's cache folder; what lies there is not built again."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import manifests, versions
from cluster.commands import follow
from cluster.machine import Backend


@dataclass(frozen=True)
class Program:
    name: str
    version: str
    package: str
    module: Path = versions.PROGRAMS
    """The folder whose go.mod and go.sum pin what it is built from."""
    link: str = "-s -w"
    in_pods: bool = False
    """It runs in a container, whatever this machine's system is."""

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}"


def _own(name: str, version: str = "", *, in_pods: bool) -> Program:
    digest = versions.digest(versions.PROGRAMS / name)
    return Program(name, f"{version}-{digest}" if version else digest, f"./{name}", in_pods=in_pods)


def _kubernetes(name: str) -> Program:
    stamp = f"-s -w -X k8s.io/component-base/version.gitVersion={versions.KUBERNETES}"
    return Program(name, versions.KUBERNETES, f"k8s.io/kubernetes/cmd/{name}", link=stamp)


PROGRAMS = (
    _own("pause", in_pods=True),
    _kubernetes("kubectl"),
    _kubernetes("kube-apiserver"),
    _kubernetes("kube-controller-manager"),
    _kubernetes("kube-scheduler"),
    _kubernetes("kubelet"),
    _kubernetes("kube-proxy"),
    _own("provisioner", in_pods=True),
    _own("coredns", versions.COREDNS, in_pods=True),
    _own("registry", versions.REGISTRY, in_pods=False),
    Program("helm", versions.HELM, "helm.sh/helm/v3/cmd/helm"),
    Program(
        "training-operator",
        versions.TRAINING_OPERATOR,
        "github.com/kubeflow/training-operator/cmd/training-operator.v1",
        versions.TRAINING_OPERATOR_MODULE,
        in_pods=True,
    ),
)
"""In an order in which each finds most of what it needs compiled by those before it."""
MINIO = Program("minio", versions.MINIO, "github.com/minio/minio", versions.MINIO_MODULE)
"""No part of a cluster: the object store that tests of `s3://` run against."""
KUEUE = Program("kueue", versions.KUEUE, "sigs.k8s.io/kueue/cmd/kueue", versions.KUEUE_MODULE, in_pods=True)
"""For a cluster that is up, where it is asked for."""
BESIDE_KIND = ("kubectl", "provisioner", "helm", "training-operator")
"""kind's nodes have the others."""


def programs_for(backend: Backend) -> list[Program]:
    return [program for program in PROGRAMS if backend is Backend.BUILT or program.name in BESIDE_KIND]


def program_of(name: str) -> Program:
    return next(program for program in PROGRAMS if program.name == name)


def binary(cache: Path, program: Program) -> Path:
    return cache / "bin" / program.file_name


def binary_of(cache: Path, name: str) -> Path:
    return binary(cache, program_of(name))


def is_built(cache: Path, backend: Backend) -> bool:
    there = all(binary(cache, program).exists() for program in programs_for(backend))
    return there and manifests.rendered(cache).exists()


def build_alone(cache: Path, program: Program) -> Iterator[str]:
    """As `build`, beside whatever else is being built, and with nothing left of Go's caches."""
    go = cache / f"go-{program.name}"
    yield from build(cache, program, go=go)
    _give_back(go)


def build(cache: Path, program: Program, *, go: Path | None = None) -> Iterator[str]:
    """Yields what it compiles. The binary appears whole or not at all; what was compiled before is not compiled again,
    as long as Go's caches are kept (in `go`).

    Raises CommandFailed with the compiler's last words.
    """
    target = binary(cache, program)
    if target.exists():
        return
    unfinished = cache / "unfinished" / program.name
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    flags = ["-v", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", program.link]
    yield from follow(
        ["go", "build", *flags, "-o", str(unfinished), program.package],
        what=f"{program.name} {program.version}",
        folder=program.module,
        environment=_environment(go or cache / "go") | ({"GOOS": "linux"} if program.in_pods else {}),
    )
    (built,) = unfinished.iterdir()
    target.parent.mkdir(exist_ok=True)
    with built.open("rb") as file:
        os.fsync(file.fileno())
    built.rename(target)
    unfinished.rmdir()


def module_folder(cache: Path, module: str, *, pinned_by: Path) -> Path:
    """Of the sources that a program was built from, brought back where they were given away since."""
    command = ["go", "mod", "download", "-json", module]
    told = subprocess.run(
        command, cwd=pinned_by, env=_environment(cache / "go"), capture_output=True, text=True, check=True
    )
    return Path(json.loads(told.stdout)["Dir"])


def finish(cache: Path) -> None:
    """After all programs: takes upstream's manifests from its module, then gives Go's caches back to the disk."""
    if not manifests.rendered(cache).exists():
        module = "github.com/kubeflow/training-operator"
        folder = module_folder(cache, module, pinned_by=versions.TRAINING_OPERATOR_MODULE)
        manifests.render_training_operator(cache, folder, binary_of(cache, "kubectl"))
    if (cache / "go").exists():
        _give_back(cache / "go")


def _give_back(go: Path) -> None:
    # Go writes its modules read-only.
    subprocess.run(["go", "clean", "-modcache"], env=_environment(go), check=True)
    shutil.rmtree(go)


def _environment(go: Path) -> dict[str, str]:
    # Without C: some run in images that hold nothing else. Caches of our own: 10 GB that go again.
    return os.environ | {"CGO_ENABLED": "0", "GOCACHE": str(go / "compiled"), "GOMODCACHE": str(go / "modules")}


def old_files(cache: Path) -> list[Path]:
    """Programs of earlier versions and their images: nothing uses them any more."""
    used = {program.file_name for program in (*PROGRAMS, MINIO, KUEUE)}
    files = [*(cache / "bin").glob("*"), *(cache / "images").glob("*")]
    rendered = (manifests.rendered(cache), manifests.kueue_rendered(cache))
    return [file for file in files if file.name.removesuffix(".tar") not in used and file not in rendered]
