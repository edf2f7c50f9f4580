"""The object as a file, and where claims lie."""

import asyncio
from pathlib import Path

import pytest
from jobs import a_job

from sft_operator.lifecycle.backend import Conflict, JobKey
from sft_operator.lifecycle.plan import launch_plan
from sft_operator.local.claims import Claims, claims_of
from sft_operator.local.lock import Locked, is_locked, locked
from sft_operator.local.store import FileStore
from sftjob.plan import JobReference, LaunchPlan, Mount
from sftjob.spec import TrainingSpec
from sftjob.status import Phase, SFTJobStatus

KEY = JobKey("default", "tiny")


def stored_job(folder: Path) -> FileStore:
    job = a_job()
    store = FileStore(folder)
    store.create(job.model_copy(update={"metadata": job.metadata.model_copy(update={"resource_version": ""})}))
    return store


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = stored_job(tmp_path)
    assert asyncio.run(store.read(KEY)) == a_job()
    assert asyncio.run(store.read(JobKey("default", "another"))) is None
    assert asyncio.run(FileStore(tmp_path / "nowhere").read(KEY)) is None


def test_a_write_over_a_version_that_was_not_read_is_a_conflict(tmp_path: Path) -> None:
    store = stored_job(tmp_path)
    job = store.load()
    assert job is not None
    running = job.model_copy(update={"status": SFTJobStatus(phase=Phase.RUNNING)})
    newer = asyncio.run(store.write_status(running))
    assert newer.metadata.resource_version == "2"
    with pytest.raises(Conflict):
        asyncio.run(store.write_status(job.model_copy(update={"status": SFTJobStatus(phase=Phase.FAILED)})))
    with pytest.raises(Conflict):
        stored_job(tmp_path)
    assert store.load() == newer


def test_a_changed_spec_is_a_new_generation(tmp_path: Path) -> None:
    store = stored_job(tmp_path)
    job = store.load()
    assert job is not None
    assert store.write_spec(job, a_job(suspend=True).spec).metadata.generation == 2


def test_a_writer_that_died_leaves_the_old_object(tmp_path: Path) -> None:
    store = stored_job(tmp_path)
    (tmp_path / ".job.json.tmp").write_text('{"apiVersion": "sftj')
    assert store.load() == a_job()
    job = store.load()
    assert job is not None
    asyncio.run(store.write_status(job.model_copy(update={"status": SFTJobStatus(phase=Phase.RUNNING)})))


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not is_locked(lock)
    with locked(lock):
        assert is_locked(lock)
        with pytest.raises(Locked), locked(lock):
            pass
    assert not is_locked(lock)


def test_claims_are_folders() -> None:
    claims = Claims(Path("/runs/claims"), {"data": Path("/home/me/chats")}, scratch=Path("/runs/support"))
    assert claims.path_of("pvc://models/base") == "/runs/claims/models/base"
    assert claims.path_of("pvc://data/2026/chats.jsonl") == "/home/me/chats/2026/chats.jsonl"
    assert claims.path_of("file:///srv/base") == "/srv/base"
    assert claims.path_of("s3://bucket/tuned/model") == "/runs/support/s3/bucket/tuned/model"
    assert claims_of(a_job().spec) == ["data", "models"]


def test_the_launch_plan_says_where_everything_lies_and_fixes_the_batch() -> None:
    job = a_job(nodes=2)
    plan = launch_plan(job, 3, path_of=Claims(Path("/c"), {}, scratch=Path("/runs/support")).path_of)
    training = TrainingSpec(global_batch_size=2)
    assert plan == LaunchPlan(
        job=JobReference(namespace="default", name="tiny", uid="uid-1"),
        attempt=3,
        spec=job.spec.model_copy(update={"training": training}),
        mounts=[
            Mount(uri="pvc://data/chats.jsonl", path="/c/data/chats.jsonl"),
            Mount(uri="pvc://models/tuned.checkpoints", path="/c/models/tuned.checkpoints"),
            Mount(uri="pvc://models/tuned", path="/c/models/tuned"),
            Mount(uri="pvc://models/base", path="/c/models/base"),
        ],
    )
