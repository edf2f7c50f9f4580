"""A volume that takes no more, met where each kind of file is written: by the kernel's own refusals."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_run import SmallRun

from sft_trainer.run import RunState
from sft_trainer.train.last_words import report_of
from sftjob.failure import JobFailure, Reason


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A longer one fails in the middle of a write, as on a volume that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_volume_that_fills_up_in_the_middle_of_a_shard_is_told_as_the_kernel_tells_it(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", interval=2)
    run.options()
    with (
        files_of_at_most(150_000),
        pytest.raises(JobFailure, match=r"writing .*step-2\.tmp-a1 failed \(.*File too large.*\); check the volume"),
    ):
        run.go()
    assert run.checkpoints() == []
    assert run.go().last_step == 6


def test_a_full_volume_ends_the_save_and_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", interval=2)
    unpublished = run.storage / "step-4.tmp-a1"
    unpublished.mkdir(parents=True)
    (unpublished / "__0_0.distcp").symlink_to("/dev/full")
    with pytest.raises(JobFailure, match=r"writing .*step-4\.tmp-a1 failed .*No space left.* free some") as caught:
        run.go()
    assert caught.value.reason is Reason.STORAGE_FULL
    assert run.checkpoints() == [2]
    assert run.go().resumed_from == 2


def test_a_full_volume_is_told_as_one_though_the_checkpoint_itself_was_written(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", interval=2)
    pointer = run.storage / f".latest.{os.getpid()}"
    run.storage.mkdir(parents=True)
    pointer.symlink_to("/dev/full")
    words = r"storage can't be read or written \(No space left on device\); free some room there"
    with pytest.raises(JobFailure, match=words) as caught:
        run.go()
    assert caught.value.reason is Reason.STORAGE_FULL
    assert run.checkpoints() == [2]
    assert run.state.saved_step == 2
    pointer.unlink(missing_ok=True)
    assert run.go().resumed_from == 2


def test_a_full_volume_ends_the_export_and_the_next_attempt_writes_it(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", interval=None)
    run.exported.mkdir(parents=True)
    (run.exported / "config.json").symlink_to("/dev/full")
    with pytest.raises(JobFailure, match=r"spec\.output: writing .*/model failed .*No space left on device") as caught:
        run.go()
    assert caught.value.reason is Reason.STORAGE_FULL
    (run.exported / "config.json").unlink()
    # The weights are written by another library, with exceptions of its own.
    words = r"spec\.output: writing .*/model failed .*File too large"
    with files_of_at_most(60_000), pytest.raises(JobFailure, match=words) as caught:
        run.go()
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    assert run.go().resumed_from == 6
    assert (run.exported / "model.safetensors").stat().st_size > 90_000


def test_a_full_volume_is_the_reason_wherever_it_is_met() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/storage/attempts/1/metrics.jsonl")
    report = report_of(error, stop=None, state=RunState())
    assert (report.reason, report.message) == (
        Reason.STORAGE_FULL,
        "[Errno 28] No space left on device: '/storage/attempts/1/metrics.jsonl'; free some room there",
    )
