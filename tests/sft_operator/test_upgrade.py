"""What one version of the operator makes of what another one wrote, by literals: no version here writes them itself."""

import asyncio
import json
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jobs import after

from sft_operator.kubernetes import observe
from sft_operator.kubernetes.backend import PyTorchJobBackend
from sft_operator.kubernetes.cache import Cache
from sft_operator.kubernetes.definition import refusal
from sft_operator.kubernetes.mounts import path_of
from sft_operator.kubernetes.progress import ProgressPoller
from sft_operator.kubernetes.pytorch_job import CONTAINER, TrainerDefaults, image_of
from sft_operator.lifecycle.decide import CreateAttempt, decide
from sft_operator.lifecycle.observation import AttemptObservation, NodeObservation, NodeState, Observation
from sft_operator.lifecycle.plan import launch_plan
from sftjob.crd import crd
from sftjob.failure import NEVER_RETRIED, Reason
from sftjob.job import SFTJob, parse_manifest
from sftjob.outcome import Outcome
from sftjob.plan import LaunchPlan
from sftjob.problems import SpecError
from sftjob.progress import Progress
from sftjob.status import SFTJobStatus

STORED = json.loads((Path(__file__).parent / "stored" / "running.json").read_text())
"""A job in mid-run, its PyTorchJob and its pods, as version 0.1.0 and an API server stored them. Never written anew:
where a test of it turns red, an upgrade would start running jobs again."""

NOW = datetime(2027, 1, 1, tzinfo=UTC)


def stored() -> SFTJob:
    return SFTJob.model_validate(deepcopy(STORED["job"]), extra="ignore")


def test_a_running_attempt_of_an_older_version_is_taken_over_as_it_is() -> None:
    job = stored()
    seen = observe.attempts(
        job, pytorch_jobs=[STORED["pytorchJob"]], pods=STORED["pods"], gone_pods=[], held_pods=set()
    )
    assert [(attempt.number, attempt.state.value) for attempt in seen] == [(1, "Running")]
    decision = decide(job, Observation(seen), now=NOW)
    assert decision.action is None
    assert decision.status == job.status


def test_its_launcher_s_plan_is_read_by_this_version() -> None:
    template = STORED["pytorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    (container,) = [one for one in template["spec"]["containers"] if one["name"] == CONTAINER]
    read = LaunchPlan.from_json(container["command"][-1])
    assert read == launch_plan(stored(), 1, path_of=path_of)


@pytest.mark.parametrize(
    ("section", "broken", "said"),
    [
        ("compute", {"env": [{"name": "HF_TOKEN", "value": "hf_secret"}]}, "given for HF_TOKEN"),
        ("compute", {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "'A' is used twice"),
        ("compute", {"resources": {"requests": {"nvidia.com/gpu": 1}}}, "nvidia.com/gpu is not in limits"),
        (
            "compute",
            {"resources": {"limits": {"nvidia.com/gpu": "500m"}}},
            "500m of nvidia.com/gpu is not written as a whole",
        ),
        ("compute", {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": 1}}}, "2 of cpu is more than"),
        ("compute", {"tolerations": [{"effect": "NoSchedule"}]}, "missing with the operator Equal"),
        ("output", [{"uri": "pvc://a/b"}, {"uri": "pvc://a/b/"}], "'pvc://a/b' is given twice"),
        ("checkpoint", {"storage": "pvc://models/tuned/c"}, "folder pvc://models/tuned/c is or lies in"),
    ],
)
def test_a_stored_job_that_breaks_a_later_rule_runs_on(section: str, broken: Any, said: str) -> None:
    document = deepcopy(STORED["job"])
    document["spec"][section] = broken
    assert SFTJob.model_validate(document, extra="ignore").metadata.uid == document["metadata"]["uid"]
    new = {name: document[name] for name in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "new"}}
    with pytest.raises(SpecError, match=said):
        parse_manifest(new)


class NoPods:
    """In the API server's place: keeps what is created, and has nothing else."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []

    async def list_pods_of(self, *_: Any) -> list[dict[str, Any]]:
        return []

    async def create_pytorch_job(self, body: dict[str, Any]) -> dict[str, Any]:
        self.created.append(body)
        return body | {"metadata": body["metadata"] | {"uid": "job-2", "resourceVersion": "1"}}


def with_next_attempt(job: SFTJob, *, default: str) -> tuple[SFTJob, str]:
    """A job between two attempts, and an operator with this `--trainer-image`: the job then, and its pods' image."""

    async def scene() -> tuple[SFTJob, str]:
        api, cache = NoPods(), Cache()
        poller, defaults = ProgressPoller(api, None), TrainerDefaults(image=default)  # type: ignore[arg-type]
        backend = PyTorchJobBackend(api, cache, poller, defaults=defaults)  # type: ignore[arg-type]
        decision = decide(job, await backend.observe(job), now=NOW)
        announced = job.model_copy(update={"status": decision.status})
        assert isinstance(decision.action, CreateAttempt)
        await backend.create(announced, launch_plan(announced, decision.action.number, path_of=path_of))
        (body,) = api.created
        (container,) = body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
        return announced, container["image"]

    return asyncio.run(scene())


def ended(job: SFTJob, *, saved_step: int | None) -> SFTJob:
    """Its current attempt, preempted."""
    number = job.status.attempts.current
    status = after(number, saved_step=saved_step, image=job.status.attempts.image)
    return job.model_copy(update={"status": status})


def new(*, image: str | None = None) -> SFTJob:
    job = stored()
    compute = job.spec.compute.model_copy(update={"image": image})
    return job.model_copy(
        update={"status": SFTJobStatus(), "spec": job.spec.model_copy(update={"compute": compute})},
    )


def test_a_job_that_has_saved_goes_on_in_its_image_whatever_the_operator_s_is_by_then() -> None:
    """Other libraries may make other tokens of the same data, and a checkpoint of other data is refused for ever."""
    job, image = with_next_attempt(new(), default="trainer:1")
    assert (image, job.status.to_json_dict()["attempts"]["image"]) == ("trainer:1", "trainer:1")
    for number in (2, 3):
        job, image = with_next_attempt(ended(job, saved_step=10), default=f"trainer:{number}")
        assert image == "trainer:1"


def test_a_job_that_has_saved_nothing_takes_the_operator_s_present_image() -> None:
    job, _ = with_next_attempt(new(), default="trainer:broken")
    job, image = with_next_attempt(ended(job, saved_step=None), default="trainer:2")
    assert image == "trainer:2"
    assert with_next_attempt(ended(job, saved_step=10), default="trainer:3")[1] == "trainer:2"


def test_an_image_that_the_job_names_is_always_its_own() -> None:
    job, image = with_next_attempt(new(image="mine:1"), default="trainer:1")
    assert (image, job.status.attempts.image) == ("mine:1", None)
    assert with_next_attempt(ended(job, saved_step=10), default="trainer:2")[1] == "mine:1"


def test_a_job_whose_image_an_older_version_has_not_kept_takes_the_present_one_and_keeps_it() -> None:
    assert "image" not in STORED["job"]["status"]["attempts"]
    job, image = with_next_attempt(ended(stored(), saved_step=10), default="trainer:2")
    assert image == "trainer:2"
    assert with_next_attempt(ended(job, saved_step=10), default="trainer:3")[1] == "trainer:2"
    # Announced by that version, and created by this one.
    assert image_of(ended(stored(), saved_step=10), TrainerDefaults("trainer:2")) == "trainer:2"


NEWER: dict[str, Any] = {
    "phase": "Hibernating",
    "queue": {"position": 3},
    "conditions": [
        {
            "type": "QuotaReserved",
            "status": "True",
            "reason": "Admitted",
            "message": "by team-a",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T12:00:00Z",
            "severity": "low",
        }
    ],
    "progress": {"attempt": 2, "stage": "Dreaming", "step": 3, "reportedAt": "2026-01-01T12:00:00Z"},
    "attempts": {
        "current": 2,
        "budget": {"gpu": 5},
        "history": [
            {
                "number": 1,
                "reason": "CosmicRay",
                "message": "a bit flipped",
                "endedAt": "2026-01-01T11:00:00Z",
                "altitude": 12,
            }
        ],
    },
}
"""Words and fields of a version to come."""


def of_attempt_2(*states: NodeState, outcome: Outcome | None = None) -> Observation:
    nodes = tuple(NodeObservation(rank, state, outcome) for rank, state in enumerate(states))
    return Observation((AttemptObservation(2, nodes),))


def newer() -> SFTJob:
    document = deepcopy(STORED["job"])
    document["status"] = deepcopy(NEWER)
    document["spec"]["future"] = {"option": 1}
    document["spec"]["data"]["packing"]["depth"] = 2
    return SFTJob.model_validate(document, extra="ignore")


def test_what_a_newer_version_wrote_survives_a_pass_of_this_one() -> None:
    running = of_attempt_2(NodeState.RUNNING, NodeState.RUNNING)
    after = decide(newer(), running, now=NOW).status.to_json_dict()
    assert after["phase"] == "Running"
    assert after["queue"] == {"position": 3}
    assert after["attempts"]["budget"] == {"gpu": 5}
    assert after["attempts"]["history"][0]["reason"] == "CosmicRay"
    assert after["attempts"]["history"][0]["altitude"] == 12
    assert after["progress"]["stage"] == "Dreaming"
    assert after["conditions"][-1] == NEWER["conditions"][0]
    types = [condition["type"] for condition in after["conditions"]]
    assert types == ["Accepted", "Running", "Reconciling", "QuotaReserved"]


def test_an_unknown_phase_is_that_of_a_job_which_is_not_over() -> None:
    decision = decide(newer(), of_attempt_2(NodeState.PENDING, NodeState.PENDING), now=NOW)
    assert (decision.action, decision.status.phase.value) == (None, "Hibernating")


def test_an_unknown_reason_of_a_newer_launcher_is_a_failure_like_any_other() -> None:
    outcome = Outcome.from_json(
        '{"attempt": 2, "nodeRank": 0, "reason": "CosmicRay", "exitCode": 70, "message": "a bit flipped", "new": [1],'
        ' "startedAt": "2026-01-01T11:00:00Z", "endedAt": "2026-01-01T12:00:00Z"}'
    )
    assert "new" not in outcome.to_json_dict()
    ended = of_attempt_2(NodeState.ENDED, NodeState.ENDED, outcome=outcome)
    status = decide(newer(), ended, now=NOW).status
    assert status.phase.value == "Restarting"
    assert (status.attempts.failures, status.attempts.disruptions) == (1, 0)
    assert (status.attempts.history[0].reason, status.attempts.history[0].message) == ("CosmicRay", "a bit flipped")


def test_an_unknown_stage_is_shown_as_it_is() -> None:
    text = '{"attempt": 2, "stage": "Dreaming", "step": 4, "totalSteps": 9, "reportedAt": "2027-01-01T00:00:00Z"}'
    running = of_attempt_2(NodeState.RUNNING, NodeState.RUNNING)
    status = decide(newer(), replace(running, progress=Progress.from_json(text)), now=NOW).status
    assert status.columns.progress == "Dreaming 4/9"


def test_an_unknown_word_equals_none_of_those_that_are_known() -> None:
    assert Reason("CosmicRay") == "CosmicRay"
    assert Reason("CosmicRay") not in NEVER_RETRIED
    assert Reason("Succeeded") is Reason.SUCCEEDED
    with pytest.raises(ValueError, match="3 is not a valid Reason"):
        Reason(3)


def test_an_unknown_field_of_the_spec_changes_no_plan() -> None:
    assert launch_plan(newer(), 1, path_of=path_of) == launch_plan(stored(), 1, path_of=path_of)


def test_a_job_of_this_version_starts_where_no_status_is() -> None:
    document = {name: part for name, part in deepcopy(STORED["job"]).items() if name != "status"}
    job = SFTJob.model_validate(document, extra="ignore")
    assert decide(job, Observation(), now=NOW).action == CreateAttempt(1)


def served() -> dict[str, Any]:
    """As `/openapi/v3` tells it: the schema of the definition."""
    return deepcopy(crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def without_preservation(schema: dict[str, Any]) -> dict[str, Any]:
    """As definitions were before they kept unknown fields."""
    schema.pop("x-kubernetes-preserve-unknown-fields", None)
    for part in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        without_preservation(part)
    return schema


def test_a_definition_of_this_version_keeps_everything() -> None:
    assert refusal(served()) is None
    assert refusal(without_preservation(served())) is None


def test_a_definition_that_drops_a_field_is_refused_with_field_and_remedy() -> None:
    older = without_preservation(served())
    del older["properties"]["status"]["properties"]["retryHandled"]
    history = older["properties"]["status"]["properties"]["attempts"]["properties"]["history"]
    del history["items"]["properties"]["reason"]
    assert refusal(older) == (
        "the CustomResourceDefinition sftjobs.sftjob.dev is of an older version and drops "
        "status.attempts.history[].reason, status.retryHandled; no job is touched until it is renewed: "
        "kubectl apply --server-side --force-conflicts -f charts/sft-operator/crds"
    )


def test_a_definition_that_keeps_what_it_does_not_know_is_good_though_it_is_older() -> None:
    older = served()
    del older["properties"]["status"]["properties"]["retryHandled"]
    assert refusal(older) is None
    del older["properties"]["status"]["x-kubernetes-preserve-unknown-fields"]
    assert refusal(older) is not None


def test_a_definition_without_a_status_names_a_few_of_the_fields() -> None:
    older = served()
    del older["properties"]["status"]
    said = refusal(older)
    assert said is not None
    assert "drops status.phase, status.observedGeneration, status.conditions and " in said
