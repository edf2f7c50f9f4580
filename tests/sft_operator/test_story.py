"""What `kubectl describe` tells of a change of a status."""

from jobs import NOW, a_job, some_progress

from sft_operator.kubernetes.story import story
from sftjob.failure import Reason
from sftjob.status import AttemptKind, AttemptRecord, AttemptsStatus, Condition, Phase, SFTJobStatus

RUNNING = SFTJobStatus(phase=Phase.RUNNING, attempts=AttemptsStatus(current=1), progress=some_progress(step=3))


def told(before: SFTJobStatus, after: SFTJobStatus) -> list[tuple[str, str, str]]:
    events = story(a_job(status=after), before=before)
    return [(event["type"], event["reason"], event["message"]) for event in events]


def test_the_end_of_an_attempt_is_told_with_its_place_before_the_next_one() -> None:
    record = AttemptRecord(
        number=1,
        reason=Reason.RANK_KILLED,
        rank=1,
        pod="tiny-a1-worker-1",
        node="gpu-7",
        message="rank 1 was killed by 9",
        saved_step=4,
        ended_at=NOW,
    )
    after = SFTJobStatus(phase=Phase.STARTING, attempts=AttemptsStatus(current=2, history=[record]))
    assert told(RUNNING, after) == [
        (
            "Warning",
            "RankKilled",
            "attempt 1 ended (rank 1, pod tiny-a1-worker-1, node gpu-7; step 4 is saved): rank 1 was killed by 9",
        ),
        ("Normal", "AttemptStarted", "attempt 2 started"),
    ]


def test_a_pre_flight_is_told_as_what_it_is() -> None:
    preparing = SFTJobStatus(phase=Phase.STARTING, attempts=AttemptsStatus(current=1, kind=AttemptKind.PREFLIGHT))
    assert told(SFTJobStatus(), preparing) == [
        ("Normal", "AttemptStarted", "attempt 1 (pre-flight on one worker, without accelerators) started")
    ]
    record = AttemptRecord(
        number=1,
        kind=AttemptKind.PREFLIGHT,
        reason=Reason.PREPARED,
        message="found storage, model and data ready",
        ended_at=NOW,
    )
    after = SFTJobStatus(phase=Phase.STARTING, attempts=AttemptsStatus(current=2, prepared=1, history=[record]))
    assert told(preparing, after) == [
        ("Normal", "Prepared", "attempt 1 found storage, model and data ready"),
        ("Normal", "AttemptStarted", "attempt 2 started"),
    ]


def test_a_step_is_no_event_and_a_checkpoint_is_one() -> None:
    step = RUNNING.model_copy(update={"progress": some_progress(step=4)})
    assert told(RUNNING, step) == []
    saved = RUNNING.model_copy(update={"progress": some_progress(step=4, saved_step=4)})
    assert told(step, saved) == [("Normal", "CheckpointSaved", "attempt 1 saved step 4")]
    assert told(saved, saved) == []


def test_what_a_job_waits_for_is_told_once_for_each_reason() -> None:
    def stalled(reason: str) -> SFTJobStatus:
        condition = Condition(
            type="Stalled", status="True", reason=reason, message="create it", last_transition_time=NOW
        )
        return SFTJobStatus(phase=Phase.STARTING, attempts=AttemptsStatus(current=1), conditions=[condition])

    starting = SFTJobStatus(phase=Phase.STARTING, attempts=AttemptsStatus(current=1))
    assert told(starting, stalled("ClaimMissing")) == [("Warning", "ClaimMissing", "create it")]
    assert told(stalled("ClaimMissing"), stalled("ClaimMissing")) == []
    assert told(stalled("ClaimMissing"), stalled("ImagePullFailed")) == [("Warning", "ImagePullFailed", "create it")]


def test_an_event_told_twice_has_one_name_and_belongs_to_its_job() -> None:
    (once,), (again,) = (
        story(a_job(status=RUNNING), before=SFTJobStatus(attempts=AttemptsStatus(current=1))) for _ in "12"
    )
    assert once["metadata"]["name"] == again["metadata"]["name"]
    assert once["involvedObject"] == {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "name": "tiny",
        "namespace": "default",
        "uid": "uid-1",
        "resourceVersion": "1",
    }
