"""What pydantic says of the table of bad manifests."""

from typing import Any

import pytest

from sftjob.job import parse_manifest
from sftjob.problems import SpecError
from sftjob.spec import SFTJobSpec, TrainingSpec
from tests.sftjob.bad_manifests import BAD, GOOD, LEAST, NEARLY_BAD, ON_ONE_MACHINE, SCRIPT, Bad, script


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.path}: {bad.says[:40]}")
def test_a_bad_manifest_is_refused_with_path_value_and_remedy(bad: Bad) -> None:
    with pytest.raises(SpecError) as refused:
        parse_manifest(bad.document)
    assert [str(problem) for problem in refused.value.problems] == [f"{bad.path}: {bad.says}"]


def test_good_manifests_are_accepted() -> None:
    for document in (GOOD, LEAST, SCRIPT, *NEARLY_BAD, *(bad.document for bad in ON_ONE_MACHINE)):
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


@pytest.mark.parametrize(("text", "times"), [("a", 1), ("$", 2), ("ü", 2)])
def test_what_no_program_could_get_as_an_argument_is_refused_with_the_longest_list(text: str, times: int) -> None:
    def with_arguments(number: int, variables: int) -> dict[str, Any]:
        arguments = [text * (1024 // times)] * number
        env = [{"name": f"V{index}", "value": "v" * 4096} for index in range(variables)]
        return SCRIPT | {"spec": SCRIPT["spec"] | script(*arguments) | {"compute": {"env": env}}}

    def told(document: dict[str, Any]) -> str:
        with pytest.raises(SpecError) as refused:
            parse_manifest({**document, "spec": {k: v for k, v in document["spec"].items() if v is not None}})
        [problem] = refused.value.problems
        return str(problem)

    spec = {key: value for key, value in with_arguments(60, 14)["spec"].items() if value is not None}
    parse_manifest(SCRIPT | {"spec": spec})
    assert told(with_arguments(64, 15)).startswith(f"spec.script.args: with {64 * 1028} bytes of it ")
    assert told(with_arguments(10, 32)).startswith("spec.compute.env: with 13")
    assert told(with_arguments(10, 32)).endswith(
        " bytes, but a program's argument takes 126975; shorten it, or put what is long into a file"
    )


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


def test_a_new_job_does_not_evaluate_what_it_trains_on_and_a_stored_one_goes_on() -> None:
    one, other = ({"name": name, "uri": f"pvc://data/{name}"} for name in ("one", "other"))
    data = {"datasets": [other, one], "evaluation": {"datasets": [one | {"name": "held", "uri": f"{one['uri']}/"}]}}
    document = LEAST | {"spec": LEAST["spec"] | {"data": data}}
    with pytest.raises(SpecError) as refused:
        parse_manifest(document)
    assert [str(problem) for problem in refused.value.problems] == [
        "spec.data.evaluation.datasets[0].uri: pvc://data/one/ is datasets[1] too, which is trained on; name another "
        "file, or use evaluation.fraction"
    ]
    SFTJobSpec.model_validate(document["spec"])


def test_counts_of_heads_and_experts_that_do_not_fit_are_refused_with_both_fields() -> None:
    """Of the preset too, where an override leaves one of the two; the API server knows no preset's numbers."""

    def told(preset: str, **overrides: int) -> list[str]:
        model = LEAST["spec"]["model"] | {"preset": preset, "overrides": overrides}
        with pytest.raises(SpecError) as refused:
            parse_manifest(LEAST | {"spec": LEAST["spec"] | {"model": model}})
        return [str(problem) for problem in refused.value.problems]

    assert told("Qwen3Dense0P6B", numAttentionHeads=5, numKeyValueHeads=2) == [
        "spec.model.overrides.numKeyValueHeads: 2 does not divide the 5 of numAttentionHeads; change one of them"
    ]
    assert told("Llama3Dense8B", numAttentionHeads=4, headDim=8) == [
        "spec.model.overrides: 'Llama3Dense8B' has no headDim; remove it",
        "spec.model.overrides.numKeyValueHeads: 8 does not divide the 4 of numAttentionHeads; change one of them",
    ]
    assert told("Qwen3MoE30BA3", numExperts=2) == [
        "spec.model.overrides.numExpertsPerTok: 8 is more than the 2 of numExperts; change one of them"
    ]
