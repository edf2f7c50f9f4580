"""What the contract accepts, what it says of the rest, and what its records keep."""

import importlib
import pkgutil
from datetime import UTC, datetime
from typing import Any, get_args

import pytest

import sftjob
from sftjob.base import Record
from sftjob.failure import NEVER_RETRIED, Reason, exit_code
from sftjob.job import parse_manifest
from sftjob.names import attempt_name, checkpoint_step, default_storage, temporary_attempt
from sftjob.outcome import Outcome
from sftjob.plan import RunRecord
from sftjob.problems import SpecError
from sftjob.progress import Progress
from tests.sftjob.bad_manifests import PRESETS

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {"name": "job"},
        "spec": {
            "model": {"loadFrom": {"uri": "pvc://models/base"}},
            "data": {"datasets": [{"name": "chats", "uri": "pvc://data/chats.jsonl"}]},
            "output": [{"uri": "pvc://models/tuned"}],
        }
        | spec,
    }


def problems(document: Any) -> list[str]:
    with pytest.raises(SpecError) as refused:
        parse_manifest(document)
    return [str(problem) for problem in refused.value.problems]


def test_three_fields_are_enough() -> None:
    spec = parse_manifest(manifest()).spec
    assert spec.storage_uri == "pvc://models/tuned.checkpoints" == default_storage("pvc://models/tuned/")
    assert (spec.training, spec.compute.world_size, spec.run_policy.retries) == (None, 1, 3)


def test_every_problem_is_told_at_once_with_path_value_and_remedy() -> None:
    document = manifest(
        model={"preset": "GPT9"},
        data={"datasets": [{"name": "Chats", "uri": "/chats.jsonl", "formatt": 1}]},
        training={"totalEpoch": 0, "optimiser": {}},
        output=[],
    )
    uri = (
        "use hf://datasets/<owner>/<name>[/<path>], s3://<bucket>/<path>, pvc://<claim>/<path>, "
        "configMap://<name>/<key> or file:///<absolute path>, without .. and spaces"
    )
    assert problems(document) == [
        f"spec.model.preset: 'GPT9' is not known; use one of {PRESETS}",
        "spec.model.tokenizer: missing, and there is no loadFrom to take it from; name a tokenizer's folder",
        "spec.data.datasets[0].name: 'Chats' has the wrong form; "
        "use lower-case letters, digits and dashes, with a letter or digit at both ends",
        f"spec.data.datasets[0].uri: '/chats.jsonl' has the wrong form; {uri}",
        "spec.data.datasets[0].formatt: unknown field; did you mean format?",
        "spec.training.totalEpoch: 0 is not allowed; use a value greater than or equal to 1",
        "spec.training.optimiser: unknown field; did you mean optimizer?",
        "spec.output: too few are given; give at least 1",
    ]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"training": {"totalEpoch": 1, "totalStep": 2}}, "spec.training.totalStep: given together with totalEpoch"),
        (
            {"training": {"globalBatchSize": 10}, "compute": {"nodes": 2, "processesPerNode": 4}},
            "spec.training.globalBatchSize: 10 is not divisible by the 8 ranks of compute; use a multiple of 8",
        ),
        ({"output": [{"uri": "pvc://models/../other"}]}, "spec.output[0].uri: 'pvc://models/../other' has the wrong"),
        ({"output": [{"uri": "s3://bucket"}]}, "spec.output[0].uri: 's3://bucket' has the wrong form"),
    ],
)
def test_what_fields_can_t_say_alone_is_refused_too(spec: dict[str, Any], said: str) -> None:
    (problem,) = problems(manifest(**spec))
    assert problem.startswith(said)


@pytest.mark.parametrize("uri", ["pvc://models/a/b.c", "file:///home/me/.cache/model", "pvc://my.claim-1/x/"])
def test_usual_places_are_accepted(uri: str) -> None:
    assert parse_manifest(manifest(output=[{"uri": uri}])).spec.output[0].uri == uri


def test_an_attempt_s_name_is_a_dns_label_for_any_job() -> None:
    assert attempt_name("support", "uid-1", 2) == "support-4a49acf8-a2"
    long = attempt_name("3" * 63, "uid-1", 12345)
    assert long[0] == "j"
    assert len(long) <= 40


def test_folder_names_say_what_they_are() -> None:
    assert checkpoint_step("step-12") == 12
    assert checkpoint_step("step-007") is checkpoint_step("step-") is None
    assert checkpoint_step("step-12.tmp-a3") is checkpoint_step("step-12.corrupt-a3") is None
    assert temporary_attempt("step-12.tmp-a3") == temporary_attempt("hf.tmp-a3") == 3


def test_an_older_version_reads_what_a_newer_one_wrote() -> None:
    text = Progress(attempt=1, stage="Training", reported_at=NOW).to_json()[:-1] + ',"fromTheFuture":1}'
    assert Progress.from_json(text).attempt == 1
    spec = parse_manifest(manifest()).spec.model_dump_json(by_alias=True)[:-1] + ',"fromTheFuture":{}}'
    record = f'{{"owner":{{"namespace":"a","name":"b","uid":"c"}},"spec":{spec}}}'
    assert RunRecord.from_json(record).spec.storage_uri == "pvc://models/tuned.checkpoints"


def test_an_outcome_always_fits_a_termination_message() -> None:
    outcome = Outcome(
        attempt=1,
        node_rank=0,
        reason=Reason.RANK_FAILED,
        exit_code=70,
        message="ü" * 5000,
        log_tail="\n" * 600,
        skipped_checkpoints=["step-1: " + "x" * 500] * 8,
        started_at=NOW,
        ended_at=NOW,
    )
    text = outcome.to_message()
    assert len(text.encode()) <= 4096
    assert Outcome.from_json(text).reason is Reason.RANK_FAILED


def test_exit_codes_are_those_that_a_retry_policy_reads() -> None:
    codes = {reason.value: int(exit_code(reason)) for reason in Reason}
    assert {codes[reason] for reason in NEVER_RETRIED} == {64, 65, 66, 70, 73, 75}
    assert codes["Succeeded"] == 0
    assert (codes["Preempted"], codes["Superseded"], codes["RankKilled"]) == (75, 76, 70)


def test_what_is_left_out_where_it_is_none_may_be_absent_when_it_is_read_back() -> None:
    for module in pkgutil.iter_modules(sftjob.__path__, "sftjob."):
        importlib.import_module(module.name)
    records = [Record]
    for record in records:
        records += record.__subclasses__()
    assert len(records) > 20
    required = [
        f"{record.__name__}.{name}"
        for record in records
        for name, field in record.model_fields.items()
        if field.is_required() and type(None) in get_args(field.annotation)
    ]
    assert required == []
