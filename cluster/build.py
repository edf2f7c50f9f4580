"""The cluster's programs, built from Go modules into the user's cache folder; what lies there is not built again."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import versions


@dataclass(frozen=True)
class Program:
    name: str
    version: str
    package: str
    module: Path | None = None
    """The folder whose go.mod pins what it is built from; None for a package that carries its own pins."""
    link: str = "-s -w"


_KUBERNETES = ("kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")

PROGRAMS = (
    Program("pause", "v1", ".", Path(__file__).parent / "pause"),
    *(
        Program(
            name,
            versions.KUBERNETES,
            f"k8s.io/kubernetes/cmd/{name}",
            versions.KUBERNETES_MODULE,
            f"-s -w -X k8s.io/component-base/version.gitVersion={versions.KUBERNETES}",
        )
        for name in _KUBERNETES
    ),
    Program(
        "training-operator",
        versions.TRAINING_OPERATOR,
        "github.com/kubeflow/training-operator/cmd/training-operator.v1",
    ),
    Program("coredns", versions.COREDNS, "github.com/coredns/coredns"),
    Program("registry", versions.REGISTRY, "github.com/distribution/distribution/v3/cmd/registry"),
    Program("helm", versions.HELM, "helm.sh/helm/v3/cmd/helm"),
)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftjob" / "cluster"


def binary(cache: Path, program: Program) -> Path:
    return cache / "bin" / f"{program.name}-{program.version}"


def is_built(cache: Path) -> bool:
    return all(binary(cache, program).exists() for program in PROGRAMS)


def build(cache: Path, program: Program) -> Iterator[str]:
    """Yields what it compiles. The binary appears whole or not at all; Go's own cache keeps what was compiled before.

    Raises BuildFailed with the compiler's last words.
    """
    target = binary(cache, program)
    if target.exists():
        return
    unfinished = cache / "unfinished" / program.name
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    flags = ["-v", "-buildvcs=false", "-trimpath", "-ldflags", program.link]
    if program.module:
        command = ["go", "build", *flags, "-o", str(unfinished), program.package]
    else:
        command = ["go", "install", *flags, f"{program.package}@{program.version}"]
    # Without C: some run in images that hold nothing else.
    process = subprocess.Popen(
        command,
        cwd=program.module or cache,
        env=os.environ | {"CGO_ENABLED": "0", "GOBIN": str(unfinished)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said = [*said[-20:], line.rstrip()]
        yield said[-1]
    if process.wait():
        raise BuildFailed(f"{program.name} {program.version}: {' '.join(command)} failed:\n" + "\n".join(said))
    (built,) = unfinished.iterdir()
    target.parent.mkdir(exist_ok=True)
    built.rename(target)
    unfinished.rmdir()


class BuildFailed(Exception):
    pass
