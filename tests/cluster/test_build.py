"""The smallest of the cluster's programs, really built."""

import dataclasses
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cluster import versions
from cluster.build import KUEUE, PROGRAMS, binary, build, module_folder
from cluster.commands import CommandFailed

pytestmark = pytest.mark.cluster
PAUSE = next(program for program in PROGRAMS if program.name == "pause")
PATIENCE_SECONDS = 300


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("go")


@pytest.fixture
def cache(tmp_path: Path, compiled: Path) -> Path:
    """An empty one, but what Go compiled for an earlier test is not compiled again."""
    (tmp_path / "go").symlink_to(compiled)
    return tmp_path


def test_a_program_is_built_once_and_runs(cache: Path) -> None:
    list(build(cache, PAUSE))  # says nothing of what Go's own cache holds
    built = binary(cache, PAUSE)
    first = built.stat()
    assert list(build(cache, PAUSE)) == []
    assert built.stat() == first
    assert [path.name for path in (cache / "bin").iterdir()] == [f"pause-{PAUSE.version}"]
    assert list((cache / "unfinished").iterdir()) == []

    process = subprocess.Popen([built])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    # 0 where it had begun to listen, and the signal's own end before.
    assert process.wait(timeout=PATIENCE_SECONDS) in (0, -signal.SIGTERM)


def test_a_build_that_was_stopped_leaves_no_program_and_is_made_again(cache: Path) -> None:
    leftover = cache / "unfinished" / "pause"
    leftover.mkdir(parents=True)
    (leftover / "half").touch()
    for _ in build(cache, PAUSE):
        assert not binary(cache, PAUSE).exists()
    assert binary(cache, PAUSE).stat().st_size > 500_000


@pytest.mark.full
def test_sources_that_were_given_back_to_the_disk_are_there_again_when_they_are_asked_for(cache: Path) -> None:
    assert (module_folder(cache, "sigs.k8s.io/kueue", pinned_by=KUEUE.module) / "config").is_dir()


def test_a_failed_build_says_what_the_compiler_said(cache: Path) -> None:
    wrong = dataclasses.replace(PAUSE, package="./nowhere")
    with pytest.raises(CommandFailed, match=rf"pause {PAUSE.version}: go build .*failed:\n[^$]*nowhere"):
        list(build(cache, wrong))
    assert not binary(cache, wrong).exists()


def test_an_orphan_of_a_node_is_collected_by_its_first_process(cache: Path) -> None:
    list(build(cache, PAUSE))
    # The shell leaves an orphan and becomes pause, which nobody else would tell of the orphan's end.
    script = f"(sleep 15 &) ; exec {binary(cache, PAUSE)}"
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
    with subprocess.Popen(command) as unshare:
        deadline = time.monotonic() + PATIENCE_SECONDS
        # Both are there; then pause alone, without even the orphan's zombie.
        for expected in (2, 1):
            while len(_below(unshare.pid)) != expected:
                assert time.monotonic() < deadline, f"never {expected}: {_below(unshare.pid)}"
                time.sleep(0.1)
        assert [_program(pid) for pid in _below(unshare.pid)] == [f"pause-{PAUSE.version}"]
        unshare.kill()


def _below(pid: int) -> list[int]:
    """All descendants, zombies too; none of what is gone by now."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return children + [below for child in children for below in _below(child)]


def _program(pid: int) -> str:
    return Path(f"/proc/{pid}/exe").readlink().name


def test_a_program_of_another_source_is_another_version(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("package main")
    first = versions.digest(tmp_path)
    (tmp_path / "main.go").write_text("package main\n")
    assert versions.digest(tmp_path) != first


def test_versions_stand_in_go_mod() -> None:
    assert versions.KUBERNETES == "v1.34.4"
    assert versions.TRAINING_OPERATOR == "v1.9.4"
    assert [program.version for program in PROGRAMS if program.name in ("kubelet", "helm")] == ["v1.34.4", "v3.19.0"]
