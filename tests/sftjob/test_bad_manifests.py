"""What pydantic says of the table of bad manifests."""

import pytest

from sftjob.job import parse_manifest
from sftjob.problems import SpecError
from sftjob.spec import TrainingSpec
from tests.sftjob.bad_manifests import BAD, GOOD, LEAST, ON_ONE_MACHINE, SCRIPT, Bad


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.path}: {bad.says[:40]}")
def test_a_bad_manifest_is_refused_with_path_value_and_remedy(bad: Bad) -> None:
    with pytest.raises(SpecError) as refused:
        parse_manifest(bad.document)
    assert [str(problem) for problem in refused.value.problems] == [f"{bad.path}: {bad.says}"]


def test_good_manifests_are_accepted() -> None:
    for document in (GOOD, LEAST, SCRIPT, *(bad.document for bad in ON_ONE_MACHINE)):
        parse_manifest(document)


def test_good_sets_every_field_and_none_to_its_default() -> None:
    """What is left at its default would not show that it is kept."""
    spec = parse_manifest(GOOD).spec
    least = parse_manifest(LEAST).spec
    assert spec.to_json_dict() == GOOD["spec"]
    assert least.training is None
    for section in ("training", "checkpoint", "compute", "run_policy"):
        given, default = getattr(spec, section).model_dump(), (getattr(least, section) or TrainingSpec()).model_dump()
        same = {name for name in given if given[name] == default[name]}
        assert same == ({"total_step"} if section == "training" else set())


def test_a_script_s_places_are_the_job_s() -> None:
    spec = parse_manifest(SCRIPT).spec
    assert spec.places == {
        "spec.script.uri": "configMap://scripts/train.py",
        "spec.script.args[1]": "pvc://data/chats.jsonl",
        "spec.checkpoint.storage": "pvc://results/job",
    }
    assert spec.outputs == []


def test_a_script_may_have_an_output_that_takes_the_adapter_of_its_own_lora() -> None:
    output = [{"uri": "pvc://results/adapter", "format": "adapter"}]
    spec = parse_manifest(SCRIPT | {"spec": SCRIPT["spec"] | {"output": output}}).spec
    assert [one.format for one in spec.outputs] == ["adapter"]
