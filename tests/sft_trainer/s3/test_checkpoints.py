"""Checkpoints in a bucket: whole with their manifest, none without; fetched, refused, kept and deleted by that."""

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from sft_trainer.storage import checkpoints
from sft_trainer.storage.best import best_first
from sft_trainer.storage.fence import Fence
from sft_trainer.train.checkpoint import write_checkpoint
from sft_trainer.train.metrics import last_steps_before
from sft_trainer.train.world import World
from sftjob.failure import JobFailure, Reason
from sftjob.manifest import CheckpointManifest, EvaluationRecord
from tests.s3_server import S3Server

pytestmark = pytest.mark.usefixtures("s3_credentials")

STORAGE = "tuned.checkpoints"


def a_fence(folder: Path, *, attempt: int = 1) -> Fence:
    folder.mkdir(exist_ok=True)
    return Fence(folder, "uid-1", attempt, f"s3://bucket/{STORAGE}")


def save(
    fence: Fence, step: int, *, loss: float | None = None, state: bytes | None = None, by_clock: bool | None = None
) -> CheckpointManifest:
    temporary = fence.storage / f"step-{step}.tmp-a{fence.attempt}"
    temporary.mkdir()
    (temporary / ".metadata").write_bytes(b"which")
    (temporary / "__0_0.distcp").write_bytes(state or f"state of step {step}".encode())
    manifest = CheckpointManifest(
        step=step,
        total_steps=9,
        attempt=fence.attempt,
        world_size=1,
        config_digest="c",
        data_digest="d",
        saved_at=datetime(2026, 1, 1, tzinfo=UTC),
        evaluation=loss
        and EvaluationRecord(step=step, loss=loss, best_step=step, best_loss=loss, without_improvement=0),
        saved_by_clock=by_clock,
        files=checkpoints.store_files(fence, temporary, [".metadata", "__0_0.distcp"], step=step),
    )
    checkpoints.publish_checkpoint(fence, temporary, manifest, keep_last=9)
    return manifest


def fetch(fence: Fence) -> list[str]:
    fence.remote.fetch_newest(fence.storage, attempt=fence.attempt, on_detail=lambda _: None)
    return sorted(path.name for path in fence.storage.iterdir())


def fetch_best(fence: Fence) -> int | None:
    """As the ranks do before the export."""
    manifests = fence.remote.manifests()
    return next(
        (
            step
            for step in best_first(manifests)
            if fence.remote.fetch(fence.storage, step, attempt=fence.attempt, on_detail=lambda _: None) is None
        ),
        None,
    )


def steps(s3: S3Server) -> list[str]:
    return sorted({key.split("/")[1] for key in s3.listed(STORAGE) if "/step-" in key})


def test_the_manifest_comes_last(s3: S3Server, tmp_path: Path) -> None:
    save(a_fence(tmp_path / "storage"), 1)
    assert [one.key.removeprefix(f"bucket/{STORAGE}/") for one in s3.asked("PUT", STORAGE)] == [
        "step-1/.metadata",
        "step-1/__0_0.distcp",
        "step-1/manifest.json",
        "latest",
    ]
    assert s3.get(f"{STORAGE}/latest") == b"step-1"


def test_another_machine_fetches_the_newest_alone(s3: S3Server, tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "first")
    save(fence, 1)
    newest = save(fence, 2)
    other = a_fence(tmp_path / "other", attempt=2)
    assert fetch(other) == ["step-2"]
    found = checkpoints.find_newest(other.storage)
    assert (found.manifest, found.corrupt) == (newest, {})
    assert (other.storage / "step-2" / "__0_0.distcp").read_bytes() == b"state of step 2"
    # What is here and whole is not fetched again; what the bucket does not have does not count.
    shutil.copytree(other.storage / "step-2", other.storage / "step-3")
    s3.requests.clear()
    assert fetch(other) == ["step-2"]
    assert s3.asked("GET", "distcp") == []


def test_one_that_does_not_verify_is_passed_over_set_aside_and_saved_again(s3: S3Server, tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "first")
    whole = save(fence, 1)
    save(fence, 2)
    save(fence, 3)
    s3.put(f"{STORAGE}/step-2/manifest.json", b"{")
    s3.put(f"{STORAGE}/step-3/__0_0.distcp", b"state of step ?")
    other = a_fence(tmp_path / "other", attempt=2)
    fetch(other)
    found = checkpoints.find_newest(other.storage)
    assert found.manifest == whole
    assert found.corrupt == {
        2: "manifest.json can't be read",
        3: "__0_0.distcp has other content than was saved",
    }
    checkpoints.set_aside(other, [3, 2])
    assert f"{STORAGE}/step-3/manifest.json" not in s3.listed()
    assert f"{STORAGE}/step-3/manifest.json.corrupt-a2" in s3.listed()
    save(other, 3)
    assert s3.get(f"{STORAGE}/step-3/__0_0.distcp") == b"state of step 3"
    assert fetch(a_fence(tmp_path / "third", attempt=3)) == ["step-3"]


def test_a_checkpoint_is_never_replaced(s3: S3Server, tmp_path: Path) -> None:
    save(a_fence(tmp_path / "first"), 1)
    before = s3.contents()
    with pytest.raises(FileExistsError, match=r"s3://bucket/tuned\.checkpoints/step-1 exists"):
        save(a_fence(tmp_path / "other", attempt=2), 1, state=b"of another attempt")
    assert s3.contents() == before


@pytest.mark.parametrize("uri", [None, f"s3://bucket/{STORAGE}"], ids=["in a folder", "in a bucket"])
def test_a_save_of_a_step_that_somebody_else_has_saved_says_where_and_what_comes_next(
    tmp_path: Path, uri: str | None
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    theirs = Fence(tmp_path / ("theirs" if uri else "ours"), "uid-1", 1, uri)
    ours = Fence(tmp_path / "ours", "uid-1", 1, uri)
    manifest = save(theirs, 1)
    with pytest.raises(JobFailure) as failure:
        write_checkpoint(
            {"weight": torch.ones(2)},
            world=World(rank=0, size=1, device=torch.device("cpu"), mesh=None),
            group=None,
            fence=ours,
            manifest=manifest,
            keep_last=1,
            sync_ledger=lambda: None,
        )
    assert failure.value.reason is Reason.STORAGE_UNAVAILABLE
    assert failure.value.message == (
        f"spec.checkpoint.storage: {uri or tmp_path / 'ours'}/step-1 exists: somebody else has saved that step since "
        "this attempt began, and no checkpoint is replaced; the next attempt goes on from it, if it is whole, or "
        "delete it"
    )


def test_what_was_not_published_is_no_checkpoint_and_goes_with_the_next_attempt(s3: S3Server, tmp_path: Path) -> None:
    save(a_fence(tmp_path / "first"), 1)
    s3.put(f"{STORAGE}/step-2/__0_0.distcp", b"half")
    other = a_fence(tmp_path / "other", attempt=2)
    assert fetch(other) == ["step-1"]
    checkpoints.remove_leftovers(other)
    assert steps(s3) == ["step-1"]


def test_an_older_attempt_publishes_and_deletes_nothing(s3: S3Server, tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "first")
    save(fence, 1)
    s3.put(f"{STORAGE}/attempts/2/node-0.json", b"{}")
    before = s3.contents()
    for act in (
        lambda: save(fence, 2),
        lambda: checkpoints.retain(fence, keep_last=1),
        lambda: checkpoints.set_aside(fence, [1]),
        lambda: checkpoints.remove_leftovers(fence),
        lambda: checkpoints.amend_manifest(fence, 1, {"loss": 1.0}),
    ):
        with pytest.raises(JobFailure, match="attempt 1 gives way"):
            act()
    assert s3.contents() == before


def test_the_newest_and_the_best_are_kept_and_this_machine_s_copy_of_the_newest(s3: S3Server, tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "first")
    for step, loss in enumerate((3.0, 1.0, 2.0, None, 2.5), start=1):
        save(fence, step, loss=loss)
        checkpoints.retain(fence, keep_last=2)
    assert steps(s3) == ["step-2", "step-4", "step-5"]
    assert {path.name for path in fence.storage.glob("step-*")} == {"step-2", "step-5"}


def test_what_the_clock_has_saved_is_kept_until_something_newer_is_there(s3: S3Server, tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "storage")
    for step, by_clock, kept in (
        (1, None, ["step-1"]),
        (2, True, ["step-1", "step-2"]),
        (3, True, ["step-1", "step-3"]),
        (4, None, ["step-1", "step-4"]),
    ):
        save(fence, step, by_clock=by_clock)
        checkpoints.retain(fence, keep_last=2)
        assert steps(s3) == kept
        assert [path.name for path in fence.storage.glob("step-*")] == kept[-1:]


def test_an_amended_manifest_is_the_one_that_is_fetched(s3: S3Server, tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "first")
    save(fence, 1)
    amended = checkpoints.amend_manifest(fence, 1, {"total_steps": 1})
    assert b'"totalSteps": 1' in s3.get(f"{STORAGE}/step-1/manifest.json")
    other = a_fence(tmp_path / "other", attempt=2)
    fetch(other)
    assert checkpoints.find_newest(other.storage).manifest == amended
    assert amended.total_steps == 1


def test_another_machine_fetches_the_best_where_it_is_exported(s3: S3Server, tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "first")
    for step, loss in ((3, 1.0), (6, 2.0), (9, 1.5)):
        save(fence, step, loss=loss)
    other = a_fence(tmp_path / "other", attempt=2)
    assert fetch(other) == ["step-9"]
    assert fetch_best(other) == 3
    checkpoints.retain(other, keep_last=1)
    assert {path.name for path in other.storage.glob("step-*")} == {"step-3", "step-9"}
    # One that does not verify is not the best.
    s3.put(f"{STORAGE}/step-3/__0_0.distcp", b"state of step ?")
    assert fetch_best(a_fence(tmp_path / "third", attempt=3)) == 9


@pytest.mark.usefixtures("s3")
def test_another_machine_finds_the_checkpoint_whose_weights_were_exported(tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "first")
    exported = save(fence, 3, loss=1.0)
    save(fence, 6, loss=2.0)
    save(fence, 9, loss=1.5)
    final = checkpoints.amend_manifest(fence, 9, {"exported_step": 3})
    other = a_fence(tmp_path / "other", attempt=2)
    assert fetch(other) == ["step-9"]
    assert checkpoints.exported_checkpoint(other, final) == exported
    # It may be gone.
    final = checkpoints.amend_manifest(fence, 9, {"exported_step": 2})
    assert checkpoints.exported_checkpoint(other, final) is None


def log_in_trackio(fence: Fence, step: int) -> sqlite3.Connection:
    """As its library does, with a journal; open, it has written nothing into the database itself."""
    (fence.storage / "trackio").mkdir(exist_ok=True)
    database = sqlite3.connect(fence.storage / "trackio" / "sftjob.db")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE IF NOT EXISTS metrics (step INTEGER)")
    database.execute("INSERT INTO metrics VALUES (?)", (step,))
    database.commit()
    return database


def steps_in_trackio(storage: Path) -> list[int]:
    with closing(sqlite3.connect(storage / "trackio" / "sftjob.db")) as database:
        return [step for (step,) in database.execute("SELECT step FROM metrics ORDER BY step")]


def test_curves_lie_in_the_bucket_and_another_machine_goes_on_with_them(s3: S3Server, tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "first")
    told, events = fence.storage / "attempts" / "1", fence.storage / "tensorboard"
    told.mkdir(parents=True)
    events.mkdir()
    (told / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2)))
    (events / "events.1.host.a1").write_bytes(b"curve")
    (events / "events.0.host.a0").write_bytes(b"of another attempt")
    fence.remote.tell(fence.storage, attempt=1)
    with closing(log_in_trackio(fence, 2)):
        save(fence, 2)
    assert [key.removeprefix(f"{STORAGE}/") for key in s3.listed() if "/step-" not in key] == [
        "attempts/1/metrics.jsonl",
        "latest",
        "tensorboard/events.1.host.a1",
        "trackio/sftjob.db",
    ]
    other = a_fence(tmp_path / "other", attempt=2)
    assert fetch(other) == ["attempts", "step-2", "trackio"]
    assert last_steps_before(other.storage, 2).trained == 2
    log_in_trackio(other, 3).close()
    save(other, 3)
    third = a_fence(tmp_path / "third", attempt=3)
    fetch(third)
    assert steps_in_trackio(third.storage) == [2, 3]


def test_curves_that_can_t_be_copied_keep_no_checkpoint_and_no_outcome_back(s3: S3Server, tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "first")
    log_in_trackio(fence, 1).close()
    (fence.storage / "trackio" / "broken.db").write_bytes(b"no database" * 1000)
    save(fence, 2)
    names = [key.removeprefix(f"{STORAGE}/") for key in s3.listed()]
    assert "step-2/manifest.json" in names
    assert [name for name in names if name.startswith("trackio")] == ["trackio/sftjob.db"]


def test_a_folder_without_room_for_what_is_fetched_is_told_with_a_remedy(s3: S3Server, tmp_path: Path) -> None:
    save(a_fence(tmp_path / "first"), 1)
    s3.put(f"{STORAGE}/attempts/1/metrics.jsonl", b'{"step":1}\n')
    other = a_fence(tmp_path / "other", attempt=2)
    (other.storage / "attempts" / "1").mkdir(parents=True)
    (other.storage / "attempts" / "1" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(JobFailure) as ended:
        fetch(other)
    assert ended.value.reason is Reason.STORAGE_FULL
    assert ended.value.message == (
        f"spec.checkpoint.storage: {other.storage}: No space left on device; checkpoints of "
        f"s3://bucket/tuned.checkpoints are fetched into {other.storage}: make room there, or give the pod's user "
        "write access"
    )


def test_another_node_fetches_what_node_0_has_chosen_and_nothing_else(s3: S3Server, tmp_path: Path) -> None:
    fence = a_fence(tmp_path / "first")
    save(fence, 1)
    save(fence, 2)
    other = a_fence(tmp_path / "other", attempt=2)
    for leftover in ("step-3", "step-3.tmp-a1", "step-2.tmp-a3"):
        (other.storage / leftover).mkdir()

    def fetch_chosen(step: int | None) -> set[str]:
        other.remote.fetch_chosen(other.storage, step, attempt=2, on_detail=lambda _: None)
        return {path.name for path in other.storage.iterdir()}

    # Of a later attempt on the same machine nothing is touched.
    assert fetch_chosen(1) == {"step-1", "step-2.tmp-a3"}
    assert fetch_chosen(2) == {"step-2", "step-2.tmp-a3"}
    s3.requests.clear()
    assert fetch_chosen(2) == {"step-2", "step-2.tmp-a3"}
    assert s3.asked("GET", "distcp") == []
    s3.put(f"{STORAGE}/step-1/__0_0.distcp", b"state of step ?")
    with pytest.raises(JobFailure) as ended:
        fetch_chosen(1)
    assert ended.value.message == (
        f"spec.checkpoint.storage: s3://bucket/{STORAGE}/step-1 was whole on node 0, and did not arrive so here "
        "(__0_0.distcp has other content than was saved); where that happens again, delete its manifest.json, and the "
        "job goes on from the one before"
    )
    assert fetch_chosen(None) == {"step-2.tmp-a3"}
