"""The fence of a storage in a bucket: one launcher an attempt, one job a storage, whatever answers get lost."""

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from sft_trainer.s3.bucket import Place
from sft_trainer.storage import fence
from sftjob.base import utc_now
from sftjob.failure import JobFailure, Reason
from sftjob.outcome import Outcome
from sftjob.plan import JobReference, LaunchPlan, Mount
from sftjob.spec import SFTJobSpec
from tests.s3_server import S3Server

pytestmark = pytest.mark.usefixtures("s3_credentials")


def a_plan(folder: Path, *, attempt: int = 1, uid: str = "uid-1") -> LaunchPlan:
    spec = SFTJobSpec.model_validate(
        {
            "model": {"loadFrom": {"uri": "pvc://c/base"}},
            "data": {"datasets": [{"name": "chats", "uri": "pvc://c/chats.jsonl"}]},
            "output": [{"uri": "s3://bucket/tuned"}],
        }
    )
    mounts = [Mount(uri=uri, path=str(folder / uri.partition("://")[2])) for uri in spec.uris]
    job = JobReference(namespace="n", name="j", uid=uid)
    return LaunchPlan(job=job, attempt=attempt, spec=spec, mounts=mounts)


def refused(plan: LaunchPlan) -> JobFailure:
    with pytest.raises(JobFailure) as failure:
        fence.enter(plan, node_rank=0, pod_uid=None)
    return failure.value


def test_a_second_launcher_of_an_attempt_and_an_older_one_are_superseded(tmp_path: Path, s3: S3Server) -> None:
    second = fence.enter(a_plan(tmp_path, attempt=2), node_rank=0, pod_uid="pod")
    claim = json.loads(s3.get("tuned.checkpoints/attempts/2/node-0.json"))
    assert (claim["jobUid"], claim["attempt"], claim["podUid"]) == ("uid-1", 2, "pod")
    assert refused(a_plan(tmp_path, attempt=2)).reason is Reason.SUPERSEDED
    assert refused(a_plan(tmp_path, attempt=1)).reason is Reason.SUPERSEDED
    second.check()
    fence.enter(a_plan(tmp_path, attempt=3), node_rank=0, pod_uid=None)
    with pytest.raises(JobFailure, match=r"attempt 2 gives way: attempt 3 uses s3://bucket/tuned\.checkpoints"):
        second.check()
    assert json.loads(s3.get("tuned.checkpoints/attempts/2/node-0.json")) == claim


def test_of_launchers_that_claim_an_attempt_at_once_one_gets_it(tmp_path: Path, s3: S3Server) -> None:
    held = s3.hold("PUT", "node-0.json")
    failures: list[JobFailure] = []

    def enter() -> None:
        try:
            fence.enter(a_plan(tmp_path), node_rank=0, pod_uid="same")
        except JobFailure as failure:
            failures.append(failure)

    slow = threading.Thread(target=enter)
    slow.start()
    assert held.reached.wait(300)
    fence.enter(a_plan(tmp_path), node_rank=0, pod_uid="same")
    held.released.set()
    slow.join()
    assert [failure.reason for failure in failures] == [Reason.SUPERSEDED]


def test_a_claim_whose_answer_was_lost_is_known_again(s3: S3Server) -> None:
    place = Place("s3://bucket/storage")
    s3.lost = [503]
    assert place.create("claim", b"of this launcher")
    assert not place.create("claim", b"of another one")
    assert s3.get("storage/claim") == b"of this launcher"
    assert len(s3.asked("PUT", "storage/claim")) == 3


def test_the_last_words_of_an_attempt_leave_a_later_one_s_curves_alone(tmp_path: Path, s3: S3Server) -> None:
    plan = a_plan(tmp_path)
    storage = fence.enter(plan, node_rank=0, pod_uid=None).storage
    database = storage / "trackio" / "sftjob.db"
    database.parent.mkdir(parents=True)
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("CREATE TABLE metrics (step INTEGER)")
    told, key = storage / "attempts" / "1" / "metrics.jsonl", "tuned.checkpoints/trackio/sftjob.db"
    told.parent.mkdir(parents=True)
    # It has not trained: the database is an old copy.
    fence.leave(plan, preempted(1), pod_uid=None)
    assert key not in s3.listed()
    told.write_text('{"step":1}\n')
    fence.leave(plan, preempted(1), pod_uid=None)
    assert key in s3.listed()
    fence.enter(a_plan(tmp_path, attempt=2), node_rank=0, pod_uid=None)
    s3.put(key, b"of attempt 2")
    fence.leave(plan, preempted(1), pod_uid=None)
    assert s3.get(key) == b"of attempt 2"
    assert s3.get("tuned.checkpoints/attempts/1/metrics.jsonl") == b'{"step":1}\n'


def preempted(attempt: int) -> Outcome:
    now = utc_now()
    return Outcome(
        attempt=attempt, node_rank=0, reason=Reason.PREEMPTED, exit_code=75, message="", started_at=now, ended_at=now
    )


def test_storage_and_output_of_another_job_are_refused(tmp_path: Path, s3: S3Server) -> None:
    fence.enter(a_plan(tmp_path), node_rank=0, pod_uid=None)
    failure = refused(a_plan(tmp_path, attempt=2, uid="uid-2"))
    assert failure.reason is Reason.STORAGE_REFUSED
    assert "s3://bucket/tuned.checkpoints belongs to the job n/j with uid uid-1" in failure.message
    s3.clear()
    s3.put("tuned/notes.txt", b"mine")
    failure = refused(a_plan(tmp_path))
    assert failure.reason is Reason.STORAGE_REFUSED
    assert "spec.output[0].uri: s3://bucket/tuned is not empty and belongs to no job" in failure.message
    assert s3.listed() == ["tuned/notes.txt"]
