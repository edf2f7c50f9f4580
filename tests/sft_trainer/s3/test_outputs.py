"""A model is published in a bucket: its manifest makes it one, and comes last; and only one job has the place."""

import json
import os
import threading
from pathlib import Path

import pytest

from sft_trainer.storage.folders import hash_tree
from sft_trainer.storage.outputs import BucketOutput
from sftjob import names
from sftjob.failure import JobFailure, Reason
from sftjob.manifest import ExportManifest
from tests.s3_server import S3Server

pytestmark = pytest.mark.usefixtures("s3_credentials")

LARGE = os.urandom(1 << 16) * 400
"""26 MB: more than one part."""
MANIFEST = "bucket/tuned/sftjob-manifest.json"


@pytest.fixture
def output() -> BucketOutput:
    return BucketOutput("s3://bucket/tuned", field="spec.output[0].uri")


def exported(folder: Path, *, uid: str = "uid-1", weights: bytes = LARGE) -> tuple[Path, ExportManifest]:
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(weights)
    files = hash_tree(folder, leave_out=names.EXPORT_MANIFEST)
    return folder, ExportManifest(owner_uid=uid, attempt=1, files=files)


def nothing() -> None:
    pass


def unheard(_: str) -> None:
    pass


def test_files_come_first_and_the_manifest_last(s3: S3Server, output: BucketOutput, tmp_path: Path) -> None:
    folder, manifest = exported(tmp_path / "export")
    held = s3.hold("PUT", "sftjob-manifest")
    publishing = threading.Thread(
        target=output.publish, args=(folder, manifest), kwargs={"check": nothing, "on_detail": unheard}
    )
    publishing.start()
    assert held.reached.wait(300)
    assert s3.get("tuned/model.safetensors") == LARGE
    assert output.manifest() is None
    held.released.set()
    publishing.join()
    assert output.manifest() == manifest
    assert output.holds(manifest)
    assert s3.listed() == ["tuned/config.json", "tuned/model.safetensors", "tuned/sftjob-manifest.json"]
    assert [one.is_conditional for one in s3.asked("PUT", MANIFEST)] == [True]
    assert not folder.exists()


def test_what_another_job_has_published_or_begun_to_publish_stays(
    s3: S3Server, output: BucketOutput, tmp_path: Path
) -> None:
    output.publish(*exported(tmp_path / "other", uid="uid-2"), check=nothing, on_detail=unheard)
    before = s3.contents()
    with pytest.raises(FileExistsError, match="s3://bucket/tuned is not empty"):
        output.publish(*exported(tmp_path / "export", weights=b"ours"), check=nothing, on_detail=unheard)
    assert s3.contents() == before
    s3.clear()
    s3.put("tuned/sftjob-owner.json", json.dumps({"ownerUid": "uid-2"}).encode())
    assert output.owner_uid() == "uid-2"
    with pytest.raises(FileExistsError):
        output.publish(*exported(tmp_path / "again", weights=b"ours"), check=nothing, on_detail=unheard)
    assert s3.listed() == ["tuned/sftjob-owner.json"]


def test_of_two_jobs_that_begin_at_once_one_publishes(s3: S3Server, output: BucketOutput, tmp_path: Path) -> None:
    held = s3.hold("PUT", "sftjob-owner")
    ended: list[Exception] = []

    def first() -> None:
        try:
            output.publish(*exported(tmp_path / "first", weights=b"first"), check=nothing, on_detail=unheard)
        except FileExistsError as error:
            ended.append(error)

    publishing = threading.Thread(target=first)
    publishing.start()
    assert held.reached.wait(300)
    _, manifest = published = exported(tmp_path / "second", uid="uid-2", weights=b"second")
    held_second = s3.hold("PUT", "sftjob-manifest")
    other = threading.Thread(target=output.publish, args=published, kwargs={"check": nothing, "on_detail": unheard})
    other.start()
    assert held_second.reached.wait(300)
    held.released.set()
    publishing.join()
    held_second.released.set()
    other.join()
    assert [str(error) for error in ended] == ["s3://bucket/tuned was taken by another job"]
    assert output.manifest() == manifest
    assert s3.get("tuned/model.safetensors") == b"second"


def test_the_next_attempt_replaces_what_one_has_left_half_uploaded(
    s3: S3Server, output: BucketOutput, tmp_path: Path
) -> None:
    s3.put("tuned/sftjob-owner.json", json.dumps({"ownerUid": "uid-1"}).encode())
    s3.put("tuned/model-00001-of-00002.safetensors", b"of another split")
    s3.put("tuned/config.json", b"old")
    folder, manifest = exported(tmp_path / "export", weights=b"whole")
    output.publish(folder, manifest, check=nothing, on_detail=unheard)
    assert s3.listed() == ["tuned/config.json", "tuned/model.safetensors", "tuned/sftjob-manifest.json"]
    assert s3.get("tuned/config.json") == b"{}"


def test_an_attempt_that_is_superseded_in_an_upload_makes_nothing_appear(
    s3: S3Server, output: BucketOutput, tmp_path: Path
) -> None:
    """The fence is asked for each object, before the request that makes it appear."""

    checks = iter(range(10))

    def check() -> None:
        # Before the first is the owner's turn, and the second is that of config.json.
        if next(checks) == 2:
            raise JobFailure(Reason.SUPERSEDED, "attempt 1 gives way")

    with pytest.raises(JobFailure, match="gives way"):
        output.publish(*exported(tmp_path / "export"), check=check, on_detail=unheard)
    assert s3.listed() == ["tuned/config.json", "tuned/sftjob-owner.json"]
    assert output.manifest() is None


def test_an_upload_tells_how_far_it_is_and_stops_where_it_is_told_to(
    s3: S3Server, output: BucketOutput, tmp_path: Path
) -> None:
    heard: list[str] = []

    def hear(detail: str) -> None:
        heard.append(detail)
        if len(heard) == 3:
            raise JobFailure(Reason.PREEMPTED, "stopped")

    with pytest.raises(JobFailure, match="stopped"):
        output.publish(*exported(tmp_path / "export"), check=nothing, on_detail=hear)
    assert heard == [
        "s3://bucket/tuned/config.json: 0 of 2 bytes",
        "s3://bucket/tuned/model.safetensors: 0.0 of 26.2 MB",
        "s3://bucket/tuned/model.safetensors: 16.8 of 26.2 MB",
    ]
    assert s3.listed() == ["tuned/config.json", "tuned/sftjob-owner.json"]


def test_a_bucket_that_may_not_be_written_is_told_with_a_remedy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (s3.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(JobFailure) as ended:
        BucketOutput("s3://bucket/tuned", field="spec.output[0].uri").is_empty()
    assert ended.value.reason is Reason.STORAGE_UNAVAILABLE
    assert "spec.output[0].uri: s3://bucket/tuned is refused by http://127.0.0.1" in ended.value.message
    assert "a user who may read and write it, from a Secret through spec.compute.env" in ended.value.message
