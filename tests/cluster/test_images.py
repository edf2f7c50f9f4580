"""The images: the commands that make them, and what they are given; building them takes minutes, not here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.commands import CommandFailed
from cluster.images import REPOSITORY, Sources, Step, buildah, buildah_steps, docker_steps, run

PLAIN = Sources(index=None, certificates=None, suite="bookworm", apt=("/etc/apt/sources.list",))
BASE = "localhost/sft-base:1bf6cd55d2c3"
BUILDAH = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mkdir -p "$0/tmp" /var/lib/containers && mount --bind "$0" /var/lib/containers && '
    'TMPDIR="$0/tmp" exec buildah "$@"',
    "/cache/builder",
    "--root=/cache/builder/storage",
    "--runroot=/cache/builder/run",
)
TRAINER = (f"--file={REPOSITORY}/trainer_image/Dockerfile", "--tag=localhost:5000/sft-trainer:dev", str(REPOSITORY))
OPERATOR = (f"--file={REPOSITORY}/operator/Dockerfile", "--tag=localhost:5000/sft-operator:dev", str(REPOSITORY))
LEFT_BY_A_KILLED_BUILD = [
    Step("free", ("rm", "-rf", "/cache/builder/tmp")),
    Step("free", (*BUILDAH, "rm", "--all")),
]
BUD = (
    *BUILDAH,
    "bud",
    "--layers",
    "--isolation=chroot",
    "--network=host",
    "--pull-never",
    f"--build-arg=BASE={BASE}",
)
PUSH = (*BUILDAH, "push", "--tls-verify=false", "--compression-format=zstd", "--compression-level=1")
BUILD_AND_PUSH = [
    Step("build sft-trainer:dev", (*BUD, *TRAINER)),
    Step(
        "push sft-trainer:dev",
        (*PUSH, "localhost:5000/sft-trainer:dev", "docker://10.0.0.2:5000/sft-trainer:dev"),
    ),
    Step("build sft-operator:dev", (*BUD, *OPERATOR)),
    Step(
        "push sft-operator:dev",
        (*PUSH, "localhost:5000/sft-operator:dev", "docker://10.0.0.2:5000/sft-operator:dev"),
    ),
]


def test_docker_builds_pushes_and_frees_only_our_own_images() -> None:
    assert docker_steps(PLAIN, push=True) == [
        Step("build sft-trainer:dev", ("docker", "build", *TRAINER)),
        Step("push sft-trainer:dev", ("docker", "push", "--quiet", "localhost:5000/sft-trainer:dev")),
        Step("build sft-operator:dev", ("docker", "build", *OPERATOR)),
        Step("push sft-operator:dev", ("docker", "push", "--quiet", "localhost:5000/sft-operator:dev")),
        Step("free", ("docker", "image", "prune", "--force", "--filter", "label=dev.sftjob.image")),
    ]
    assert [step.name for step in docker_steps(PLAIN, push=False)] == [
        "build sft-trainer:dev",
        "build sft-operator:dev",
        "free",
    ]


def test_buildah_first_makes_the_base_from_the_sources_of_this_machine() -> None:
    assert buildah_steps(Path("/cache"), PLAIN, bases=[], registry="10.0.0.2:5000") == [
        *LEFT_BY_A_KILLED_BUILD,
        Step("Debian", ("mkdir", "-p", "/cache/unfinished/base")),
        Step(
            "Debian",
            (
                "mmdebstrap",
                "--variant=minbase",
                "--include=usr-is-merged,python3,python3-venv,libpython3-dev,g++,ca-certificates",
                "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--dpkgopt=path-exclude=/usr/lib/python3.*/config-*/*.a",
                "bookworm",
                "/cache/unfinished/base/base.tar",
                "/etc/apt/sources.list",
            ),
        ),
        Step(
            "base image",
            (
                *BUILDAH,
                "bud",
                "--isolation=chroot",
                f"--file={REPOSITORY}/trainer_image/base.Dockerfile",
                f"--tag={BASE}",
                "/cache/unfinished/base",
            ),
        ),
        Step("base image", ("rm", "-r", "/cache/unfinished/base")),
        *BUILD_AND_PUSH,
        Step("free", (*BUILDAH, "rmi", "--prune")),
    ]


def test_buildah_keeps_the_base_that_it_has_and_lets_an_old_one_go() -> None:
    old = "localhost/sft-base:0123456789ab"
    assert buildah_steps(Path("/cache"), PLAIN, bases=[old, BASE], registry="10.0.0.2:5000") == [
        *LEFT_BY_A_KILLED_BUILD,
        *BUILD_AND_PUSH,
        Step("free", (*BUILDAH, "rmi", old)),
        Step("free", (*BUILDAH, "rmi", "--prune")),
    ]
    assert [step.name for step in buildah_steps(Path("/cache"), PLAIN, bases=[BASE], registry=None)] == [
        "free",
        "free",
        "build sft-trainer:dev",
        "build sft-operator:dev",
        "free",
    ]


def test_a_package_index_and_certificates_reach_a_build_as_secrets_only() -> None:
    address = "https://user:password@mirror.example/simple"
    sources = Sources(index=address, certificates="/certificates.pem", suite="bookworm", apt=())
    secrets = ("--secret=id=index,env=PIP_INDEX_URL", "--secret=id=certificates,src=/certificates.pem")
    docker = docker_steps(sources, push=False)
    buildah = buildah_steps(Path("/cache"), sources, bases=[BASE], registry=None)
    builds = [[step.command for step in steps if step.name.startswith("build")] for steps in (docker, buildah)]
    assert builds == [
        [("docker", "build", *secrets, *TRAINER), ("docker", "build", *secrets, *OPERATOR)],
        [(*BUD, *secrets, *TRAINER), (*BUD, *secrets, *OPERATOR)],
    ]
    assert address not in str(docker) + str(buildah)
    assert list(run(Step("build", ("printenv", "PIP_INDEX_URL")), sources)) == [address]


def test_a_step_that_fails_says_what_the_builder_said() -> None:
    step = Step("push", (sys.executable, "-c", "print('sending'); raise SystemExit('no room')"))
    with pytest.raises(CommandFailed, match=r"push: \S+ -c .* failed:\nsending\nno room"):
        list(run(step, PLAIN))


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("buildah") is None, reason="needs root and buildah")
def test_a_build_sees_trainer_operator_contract_and_locks_and_nothing_else(tmp_path: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM scratch\nCOPY . /\n")
    (tmp_path / "builder").mkdir()
    output = f"--output=type=local,dest={tmp_path / 'context'}"
    command = [*buildah(tmp_path), "bud", "--isolation=chroot", f"--file={dockerfile}", output, str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)

    seen = {path.relative_to(tmp_path / "context") for path in (tmp_path / "context").rglob("*") if path.is_file()}
    assert {path.parts[0] for path in seen} == {"api", "operator", "requirements", "trainer_image"}
    assert {path.parts[1] for path in seen if path.parts[0] in ("api", "operator")} == {"sftjob", "sft_operator"}
    assert Path("trainer_image/sft_trainer/launcher/__main__.py") in seen
    assert not [path for path in seen if path.suffix == ".pyc"]


@pytest.mark.parametrize(
    ("lock", "package"), [("trainer.txt", "torch"), ("torch.txt", "torch"), ("operator.txt", "kopf")]
)
def test_the_images_get_the_versions_that_everything_else_is_tested_with(lock: str, package: str) -> None:
    every, image = pins("all.txt"), pins(lock)
    assert package in {name for name, _, _ in image}
    assert image - every == set()


def test_torch_s_own_layer_holds_nothing_that_the_image_would_not_have() -> None:
    assert pins("torch.txt") - pins("trainer.txt") == set()


@pytest.mark.parametrize("lock", ["trainer.txt", "torch.txt", "operator.txt", "uv.txt"])
def test_no_lock_tells_where_packages_come_from(lock: str) -> None:
    assert "://" not in (REPOSITORY / "requirements" / lock).read_text()


def pins(lock: str) -> set[tuple[str, str, str]]:
    """Name, version and marker of each package."""
    text = (REPOSITORY / "requirements" / lock).read_text()
    return set(re.findall(r"^([\w.-]+)==(\S+) ?(?:; (.*))? \\$", text, re.MULTILINE))
