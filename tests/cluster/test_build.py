"""The smallest of the cluster's programs, really built."""

import dataclasses
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from cluster.build import PROGRAMS, BuildFailed, binary, build

pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="Go is needed for the cluster only")
PAUSE = next(program for program in PROGRAMS if program.name == "pause")
PATIENCE_SECONDS = 300


def test_a_program_is_built_once_and_runs(tmp_path: Path) -> None:
    list(build(tmp_path, PAUSE))  # says nothing of what Go's own cache holds
    built = binary(tmp_path, PAUSE)
    first = built.stat()
    assert list(build(tmp_path, PAUSE)) == []
    assert built.stat() == first
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["pause-v1"]
    assert list((tmp_path / "unfinished").iterdir()) == []

    process = subprocess.Popen([built])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    # 0 where it had begun to listen, and the signal's own end before.
    assert process.wait(timeout=PATIENCE_SECONDS) in (0, -signal.SIGTERM)


def test_a_build_that_was_stopped_leaves_no_program_and_is_made_again(tmp_path: Path) -> None:
    leftover = tmp_path / "unfinished" / "pause"
    leftover.mkdir(parents=True)
    (leftover / "half").touch()
    for _ in build(tmp_path, PAUSE):
        assert not binary(tmp_path, PAUSE).exists()
    assert binary(tmp_path, PAUSE).stat().st_size > 500_000


def test_a_failed_build_says_what_the_compiler_said(tmp_path: Path) -> None:
    wrong = dataclasses.replace(PAUSE, package="./nowhere")
    with pytest.raises(BuildFailed, match=r"pause v1: go build .*failed:\n[^$]*nowhere"):
        list(build(tmp_path, wrong))
    assert not binary(tmp_path, wrong).exists()
