"""The product's images: the commands that build them, push them and free what the builder no longer needs.

In come this repository and the package sources of this machine; out go `IMAGES` in the cluster's registry. The builder
is Docker where an engine answers, else buildah with its storage in the cache folder.
Called by `python -m cluster images`: `read_sources`, then `docker_steps` or `buildah_steps`, then each by `run`.
"""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.archives import REGISTRY_NAME
from cluster.commands import follow

REPOSITORY = Path(__file__).parent.parent

BASE = "localhost/sft-base"
"""One for both, so that it lies once on a disk."""
LABEL = "dev.sftjob.image"
"""The Dockerfiles': tells our images from others that Docker has."""

# What the trainer's Dockerfile would install otherwise; usr-is-merged keeps usrmerge out, which brings all of Perl.
BASE_PACKAGES = ("usr-is-merged", "python3", "python3-venv", "libpython3-dev", "g++", "ca-certificates")
BASE_RECIPE = (
    "--variant=minbase",
    f"--include={','.join(BASE_PACKAGES)}",
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/lib/python3.*/config-*/*.a",
)

# buildah's --root moves neither its large temporary files nor what it remembers of pushed layers. Without the latter
# each push would compress all of them again, so it stays; in the cache folder, by a mount that nobody else sees.
_ALL_IN_FOLDER = (
    'mkdir -p "$0/tmp" /var/lib/containers && mount --bind "$0" /var/lib/containers && '
    'TMPDIR="$0/tmp" exec buildah "$@"'
)


@dataclass(frozen=True)
class Image:
    name: str
    dockerfile: Path

    @property
    def in_pods(self) -> str:
        """What a pod of the cluster calls it."""
        return f"{REGISTRY_NAME}/{self.name}"


TRAINER = Image("sft-trainer:dev", REPOSITORY / "trainer_image" / "Dockerfile")
OPERATOR = Image("sft-operator:dev", REPOSITORY / "operator" / "Dockerfile")
IMAGES = (TRAINER, OPERATOR)


@dataclass(frozen=True)
class Step:
    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """Where this machine gets packages from. None of it is written into an image, save for apt's sources."""

    index: str | None
    """Of Python packages; None for PyPI itself."""
    certificates: str | None
    """A PEM file; None for those that a Debian image has."""
    suite: str
    apt: tuple[str, ...]
    """apt's own files."""


def docker_steps(sources: Sources, *, push: bool) -> list[Step]:
    """The base comes from Docker's own registry. `push` is for a cluster that listens on localhost:5000."""
    steps = []
    for image in IMAGES:
        steps.append(Step(f"build {image.name}", ("docker", "build", *_build_arguments(image, sources))))
        if push:
            steps.append(Step(f"push {image.name}", ("docker", "push", "--quiet", image.in_pods)))
    return [
        *steps,
        # Docker keeps the cache of layers apart, so this takes only what a later build has replaced.
        Step("free", ("docker", "image", "prune", "--force", "--filter", f"label={LABEL}")),
    ]


def buildah_steps(cache: Path, sources: Sources, *, bases: list[str], registry: str | None) -> list[Step]:
    """`bases` are the names of base images in the builder, `registry` is host:port of one that speaks plain HTTP."""
    builder = buildah(cache)
    base = base_name(sources)
    # A build that was killed leaves gigabytes in both.
    steps = [
        Step("free", ("rm", "-rf", f"{storage(cache)}/tmp")),
        Step("free", (*builder, "rm", "--all")),
    ]
    if base not in bases:
        folder = cache / "unfinished" / "base"
        archive = folder / "base.tar"
        bootstrap = ("mmdebstrap", *BASE_RECIPE, sources.suite, str(archive), *sources.apt)
        dockerfile = str(TRAINER.dockerfile.with_name("base.Dockerfile"))
        steps += [
            Step("Debian", ("mkdir", "-p", str(folder))),
            Step("Debian", bootstrap),
            Step(
                "base image",
                (*builder, "bud", "--isolation=chroot", f"--file={dockerfile}", f"--tag={base}", str(folder)),
            ),
            Step("base image", ("rm", "-r", str(folder))),
        ]
    # Without an engine there is no network for a build to have but the machine's.
    options = ("--layers", "--isolation=chroot", "--network=host", "--pull-never", f"--build-arg=BASE={base}")
    # Level 1 of either takes the same CPU time for the push; nodes unpack zstd in two thirds of gzip's time.
    push = ("push", "--tls-verify=false", "--compression-format=zstd", "--compression-level=1")
    for image in IMAGES:
        build = (*builder, "bud", *options, *_build_arguments(image, sources))
        steps.append(Step(f"build {image.name}", build))
        if registry:
            destination = f"docker://{registry}/{image.name}"
            steps.append(Step(f"push {image.name}", (*builder, *push, image.in_pods, destination)))
    old = [name for name in bases if name != base]
    if old:
        steps.append(Step("free", (*builder, "rmi", *old)))
    # Takes what no name needs; the layers of what has a name stay, and with them the cache of the next build.
    steps.append(Step("free", (*builder, "rmi", "--prune")))
    return steps


def base_name(sources: Sources) -> str:
    """Another recipe or another Debian is another base."""
    recipe = "\n".join((sources.suite, *BASE_RECIPE))
    return f"{BASE}:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def base_images(cache: Path) -> list[str]:
    """Names of the base images that the builder has."""
    storage(cache).mkdir(parents=True, exist_ok=True)
    command = [*buildah(cache), "images", "--format={{.Name}}:{{.Tag}}", f"--filter=reference={BASE}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def storage(cache: Path) -> Path:
    return cache / "builder"


def run(step: Step, sources: Sources) -> Iterator[str]:
    """Yields what it says. Raises CommandFailed with its last words."""
    index = {"PIP_INDEX_URL": sources.index} if sources.index else {}
    yield from follow(step.command, what=step.name, folder=REPOSITORY, environment=os.environ | index)


def read_sources() -> Sources:
    apt = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    return Sources(
        index=_pip_option("index-url"),
        certificates=_pip_option("cert"),
        suite=platform.freedesktop_os_release()["VERSION_CODENAME"],
        apt=tuple(str(path) for path in apt if path.is_file() and path.suffix in (".list", ".sources")),
    )


def _pip_option(name: str) -> str | None:
    """As pip itself finds it: in its environment variable, else in its configuration files."""
    variable = os.environ.get(f"PIP_{name.upper().replace('-', '_')}")
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
    return variable or subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def _build_arguments(image: Image, sources: Sources) -> tuple[str, ...]:
    secrets = []
    if sources.index:
        secrets.append("--secret=id=index,env=PIP_INDEX_URL")
    if sources.certificates:
        secrets.append(f"--secret=id=certificates,src={sources.certificates}")
    return (*secrets, f"--file={image.dockerfile}", f"--tag={image.in_pods}", str(REPOSITORY))


def buildah(cache: Path) -> tuple[str, ...]:
    folder = storage(cache)
    roots = (f"--root={folder}/storage", f"--runroot={folder}/run")
    return ("unshare", "--mount", "sh", "-c", _ALL_IN_FOLDER, str(folder), *roots)
