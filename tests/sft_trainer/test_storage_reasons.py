"""What is wrong with storage is told apart: no room, not shared, or not to be written at all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sft_trainer.storage import fence, nodes, records
from sft_trainer.storage.exports import refuse_unwritable_outputs
from sft_trainer.storage.folders import hash_tree
from sft_trainer.storage.outputs import FolderOutput
from sftjob import names
from sftjob.failure import JobFailure, Reason
from sftjob.manifest import ExportManifest
from sftjob.plan import JobReference, LaunchPlan, Mount
from sftjob.progress import Resolved
from sftjob.sources import ModelSpec
from sftjob.spec import SFTJobSpec


def a_plan(folder: Path) -> LaunchPlan:
    spec = SFTJobSpec.model_validate(
        {
            "model": {"loadFrom": {"uri": "pvc://c/base"}},
            "data": {"datasets": [{"name": "chats", "uri": "pvc://c/chats.jsonl"}]},
            "output": [{"uri": "pvc://c/tuned"}],
        }
    )
    mounts = [Mount(uri=uri, path=str(folder / uri.removeprefix("pvc://c/"))) for uri in spec.uris]
    return LaunchPlan(job=JobReference(namespace="n", name="j", uid="u"), attempt=1, spec=spec, mounts=mounts)


@pytest.mark.parametrize(
    ("number", "reason", "remedy"),
    [
        (errno.ENOSPC, Reason.STORAGE_FULL, "free some room there"),
        (errno.EDQUOT, Reason.STORAGE_FULL, "free some room there"),
        (errno.EACCES, Reason.STORAGE_UNAVAILABLE, "give the pod's user write access"),
        (errno.EIO, Reason.STORAGE_UNAVAILABLE, "check the volume"),
    ],
)
def test_a_full_volume_or_quota_is_told_apart_from_one_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: Reason, remedy: str
) -> None:
    def refuse(path: Any, *_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(records.os, "open", refuse)
    with pytest.raises(JobFailure, match=rf"tuned\.checkpoints can't be read or written .*{remedy}") as failure:
        fence.enter(a_plan(tmp_path), node_rank=0, pod_uid=None)
    assert failure.value.reason is reason


def test_an_output_that_can_t_appear_by_one_rename_is_told_before_training(tmp_path: Path) -> None:
    plan, elsewhere = a_plan(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "tuned").symlink_to(elsewhere)
    with pytest.raises(JobFailure, match=r"spec\.output\[0\]\.uri: .*/tuned is a symbolic link to .*/elsewhere, and"):
        refuse_unwritable_outputs(plan)
    mounted = plan.model_copy(update={"mounts": [Mount(uri="pvc://c/tuned", path="/proc")]})
    with pytest.raises(JobFailure, match=r"spec\.output\[0\]\.uri: /proc is where something is mounted, and a model"):
        refuse_unwritable_outputs(mounted)
    (tmp_path / "tuned").unlink()
    (tmp_path / "tuned").write_text("a file")
    with pytest.raises(JobFailure, match=r"spec\.output\[0\]\.uri: pvc://c/tuned is not empty"):
        fence.enter(plan, node_rank=0, pod_uid=None)


def test_a_model_takes_the_place_of_an_empty_folder_and_of_nothing_else(tmp_path: Path) -> None:
    export, tuned = tmp_path / "tuned.tmp-a1", tmp_path / "tuned"
    for folder in (export, tuned):
        folder.mkdir()
    (export / "config.json").write_text("{}")
    manifest = ExportManifest(owner_uid="u", attempt=1, files=hash_tree(export, leave_out=names.EXPORT_MANIFEST))
    (tuned / "notes.txt").write_text("mine")
    output = FolderOutput(tuned)
    with pytest.raises(FileExistsError):
        output.publish(export, manifest, check=lambda: None, on_detail=lambda _: None)
    (tuned / "notes.txt").unlink()
    output.publish(export, manifest, check=lambda: None, on_detail=lambda _: None)
    assert output.manifest() == manifest
    assert output.holds(manifest)


def test_an_output_that_could_not_be_written_after_training_is_told_before_it(tmp_path: Path) -> None:
    plan = a_plan(tmp_path)
    refuse_unwritable_outputs(plan)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    below = plan.model_copy(update={"mounts": [Mount(uri="pvc://c/tuned", path=f"{tmp_path}/file/tuned")]})
    with pytest.raises(JobFailure, match=r"spec\.output\[0\]\.uri: .*/file can't be written") as failure:
        refuse_unwritable_outputs(below)
    assert failure.value.reason is Reason.STORAGE_UNAVAILABLE


def test_storage_that_a_node_does_not_share_with_node_0_has_a_reason_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_SHARED_WITHIN_SECONDS", 0)
    with pytest.raises(JobFailure, match="is not shared") as failure:
        nodes.wait_for_node_zero(a_plan(tmp_path))
    assert failure.value.reason is Reason.STORAGE_NOT_SHARED


def test_what_was_looked_up_for_sources_that_were_corrected_since_is_forgotten(tmp_path: Path) -> None:
    plan = a_plan(tmp_path)
    fence.enter(plan, node_rank=0, pod_uid=None)
    fence.record_pins(plan, Resolved(model_revision="0" * 40), {})
    again = plan.model_copy(update={"attempt": 2})
    fence.enter(again, node_rank=0, pod_uid=None)
    assert fence.pins_before(again) == (Resolved(model_revision="0" * 40), {})
    model = ModelSpec.model_validate({"loadFrom": {"uri": "pvc://c/other"}})
    spec = plan.spec.model_copy(update={"model": model})
    corrected = plan.model_copy(update={"attempt": 3, "spec": spec})
    fence.enter(corrected, node_rank=0, pod_uid=None)
    assert fence.pins_before(corrected) is None
