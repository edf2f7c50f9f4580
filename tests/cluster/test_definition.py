"""The CRD on a real API server: what it accepts, refuses, completes, explains, and what an operator makes of it."""

import itertools
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml
from odd_on_cluster import assert_odd_jobs_do_no_harm
from operator_room import Room, room, small_job
from real_cluster import Cluster

from sftjob.job import SFTJob, parse_manifest
from tests.sftjob.bad_manifests import BAD, GOOD, LEAST, NEARLY_BAD, ON_ONE_MACHINE, SCRIPT, Bad

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "sftjobs.sftjob.dev.yaml"

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster that knows SFTJobs; no operator looks at them."""
    cluster.kubectl("apply", "--server-side", f"--filename={CRD}")
    cluster.kubectl("wait", "--for=condition=Established", "crd/sftjobs.sftjob.dev", "--timeout=300s")
    yield cluster
    cluster.kubectl("delete", "sftjob", "job", "--ignore-not-found")


def tried(api: Cluster, document: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    kubectl = [api.folder / "bin" / "kubectl", f"--kubeconfig={api.folder / 'kubeconfig'}"]
    command = [*kubectl, "apply", "--dry-run=server", "--filename=-"]
    return subprocess.run(command, input=json.dumps(document), capture_output=True, text=True, timeout=300)


def refusal(api: Cluster, document: dict[str, Any]) -> list[str]:
    """What kubectl prints, a line for each problem, with paths as in a spec: `limits.cpu` for `limits[cpu]`."""
    done = tried(api, document)
    assert done.returncode == 1, done.stdout
    told = re.sub(r"\[([a-z]\w*)\]", r".\1", done.stderr.strip())
    return [line.removeprefix("* ") for line in re.sub(r"^The SFTJob \S+ is invalid: ", "", told).splitlines() if line]


def accepted(api: Cluster, document: dict[str, Any], *, stored: bool = False) -> dict[str, Any]:
    how = [] if stored else ["--dry-run=server"]
    found: dict[str, Any] = json.loads(
        api.kubectl("apply", *how, "--output=json", "--filename=-", stdin=json.dumps(document))
    )
    return found


@pytest.mark.parametrize("bad", [*BAD, *ON_ONE_MACHINE], ids=lambda bad: f"{bad.path}: {bad.says[:40]}")
def test_a_bad_manifest_is_refused_with_path_value_and_remedy(api: Cluster, bad: Bad) -> None:
    lines = refusal(api, bad.document)
    assert [line for line in lines if bad.path in line and (bad.server or bad.says) in line], lines


def test_everything_wrong_is_told_at_once(api: Cluster) -> None:
    spec = {
        "model": {"preset": "GPT9"},
        "data": {"datasets": [{"name": "a", "uri": "/a"}, {"name": "a", "uri": "pvc://data/b.jsonl"}]},
        "output": [{"uri": "gs://bucket/model"}],
        "compute": {"env": [{"name": "PET_NNODES"}]},
    }
    assert {line.partition(": ")[0] for line in refusal(api, LEAST | {"spec": spec})} == {
        "spec.model.preset",
        "spec.model.tokenizer",
        "spec.data.datasets",
        "spec.data.datasets[0].uri",
        "spec.output[0].uri",
        "spec.compute.env[0].name",
        "spec.compute.env[0].value",
    }


@pytest.mark.parametrize("document", [GOOD, LEAST, SCRIPT, *NEARLY_BAD])
def test_a_good_manifest_comes_back_with_pydantic_s_defaults(api: Cluster, document: dict[str, Any]) -> None:
    stored = accepted(api, document)
    ours = parse_manifest(document).spec
    assert stored["spec"] == ours.to_json_dict()
    assert SFTJob.model_validate(stored, extra="ignore").spec == ours


def test_the_examples_are_accepted_as_they_are(api: Cluster) -> None:
    for path in sorted((ROOT / "examples").glob("**/*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] == "SFTJob":
                assert accepted(api, document)["spec"] == parse_manifest(document).spec.to_json_dict(), path


CHANGES: list[tuple[str, Any]] = [
    ("model", {"loadFrom": {"uri": "pvc://models/other"}}),
    ("model", {"loadFrom": {"uri": "pvc://models/base"}, "tokenizer": {"uri": "pvc://models/base"}}),
    ("data", {"datasets": [{"name": "chats", "uri": "pvc://data/chats.jsonl", "sampleRatio": 0.5}]}),
    ("training", {"totalStep": 10}),
    ("checkpoint", {"storage": "pvc://results/other"}),
    ("output", [{"uri": "pvc://results/other"}]),
    ("compute", {"nodes": 2}),
    ("compute", {"resources": {"limits": {"cpu": 1}}}),
]


def test_only_the_run_policy_may_change(api: Cluster) -> None:
    accepted(api, LEAST, stored=True)
    for section, changed in CHANGES:
        said = (
            f"spec.{section}: Forbidden: can't be changed after creation; "
            "create another job with another name and storage"
        )
        assert refusal(api, LEAST | {"spec": LEAST["spec"] | {section: changed}}) == [said]
    policy = {
        "suspend": True,
        "preflight": "always",
        "retries": 7,
        "disruptionRetries": 8,
        "startDeadlineSeconds": 60,
        "activeDeadlineSeconds": 3600,
        "progressDeadlineSeconds": 600,
        "ttlSecondsAfterFinished": 0,
        "terminationGracePeriodSeconds": 60,
    }
    found = accepted(api, LEAST | {"spec": LEAST["spec"] | {"runPolicy": policy}}, stored=True)
    assert found["spec"]["runPolicy"] == policy
    assert found["metadata"]["generation"] == 2


def test_an_optional_field_can_t_be_taken_away_either(api: Cluster) -> None:
    api.kubectl("delete", "sftjob", "job", "--ignore-not-found")
    accepted(api, LEAST | {"spec": LEAST["spec"] | {"checkpoint": {"everySteps": 5}}}, stored=True)
    lines = refusal(api, LEAST)
    assert len(lines) == 1
    assert lines[0].startswith("spec.checkpoint: Forbidden: can't be changed after creation")


def test_a_stored_job_that_breaks_a_later_rule_can_still_be_changed(api: Cluster) -> None:
    api.kubectl("delete", "sftjob", "job", "--ignore-not-found")
    document = LEAST | {
        "spec": LEAST["spec"]
        | {
            "output": [{"uri": "pvc://a/b"}, {"uri": "pvc://a/b/"}, {"uri": "pvc://a/b.checkpoints"}],
            "compute": {
                "resources": {"requests": {"cpu": 2, "amd.com/gpu": 1}, "limits": {"cpu": 1, "nvidia.com/gpu": "0.5"}},
                "tolerations": [{"operator": "Equal", "tolerationSeconds": 5}],
                "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "HF_TOKEN", "value": "x"}],
            },
        }
    }
    assert len(refusal(api, document)) == 9
    older = yaml.safe_load(CRD.read_text())
    _take_rules_away(older)
    api.kubectl("replace", "--filename=-", stdin=json.dumps(older))
    try:
        # The API server takes a definition over in a moment of its own.
        _until(lambda: tried(api, document).returncode == 0)
        accepted(api, document, stored=True)
    finally:
        api.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={CRD}")
    other = document | {"metadata": document["metadata"] | {"name": "other"}}
    _until(lambda: tried(api, other).returncode == 1)
    api.kubectl(
        "patch", "sftjob", "job", "--subresource=status", "--type=merge", '--patch={"status":{"phase":"Failed"}}'
    )
    suspended = document | {"spec": document["spec"] | {"runPolicy": {"suspend": True}}}
    assert accepted(api, suspended, stored=True)["spec"]["runPolicy"]["suspend"] is True
    api.kubectl("delete", "sftjob", "job")


def _take_rules_away(schema: Any) -> None:
    if isinstance(schema, dict):
        schema.pop("x-kubernetes-validations", None)
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _take_rules_away(part)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_status_is_written_beside_the_spec_and_shown_in_columns(api: Cluster) -> None:
    api.kubectl("delete", "sftjob", "job", "--ignore-not-found")
    accepted(api, LEAST | {"status": {"phase": "Running"}}, stored=True)
    assert "status" not in api.get("sftjob", "job")
    status = {
        "phase": "FromTheFuture",
        "attempts": {"current": 2},
        "columns": {
            "progress": "Training 420/1000",
            "loss": "1.31",
            "tokensPerSecond": "812",
            "eta": "14m",
            "saved": "400",
        },
    }
    api.kubectl(
        "patch", "sftjob", "job", "--subresource=status", "--type=merge", f"--patch={json.dumps({'status': status})}"
    )
    header, row = api.kubectl("get", "sft", "job").splitlines()
    assert header.split() == ["NAME", "PHASE", "PROGRESS", "LOSS", "TOKENS/S", "ETA", "SAVED", "ATTEMPT", "AGE"]
    assert row.split()[:-1] == ["job", "FromTheFuture", "Training", "420/1000", "1.31", "812", "14m", "400", "2"]
    assert api.get("sftjob", "job")["status"] == status


def test_explain_describes_every_field_of_the_spec(api: Cluster) -> None:
    served = json.loads(api.kubectl("get", "--raw", "/openapi/v3/apis/sftjob.dev/v1alpha1"))
    schema = served["components"]["schemas"]["dev.sftjob.v1alpha1.SFTJob"]["properties"]["spec"]
    silent = [path for path, part in _fields(schema, "spec") if not part.get("description")]
    assert silent == []
    told = api.kubectl("explain", "sftjob.spec.training.optimizer.lr")
    assert "FIELD: lr <number>" in told
    assert "Peak learning rate. Default: 6e-05." in told


def _fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}", part
        yield from _fields(part, f"{path}.{name}")
        yield from _fields(part.get("items", {}), f"{path}.{name}")


@pytest.fixture
def own(api: Cluster, tmp_path: Path, smollm2: Path, chats: Path) -> Iterator[Room]:
    """For an operator of its own."""
    with room(api, f"defined-{next(_numbers)}", tmp_path, model=smollm2, chats=chats) as made:
        yield made


@pytest.mark.parametrize("numbers", [range(100), pytest.param(range(100, 10_000), marks=pytest.mark.full)])
def test_odd_jobs_are_refused_with_a_path_or_handled_and_the_operator_stays_well(own: Room, numbers: range) -> None:
    assert_odd_jobs_do_no_harm(own, own.start_operator(), numbers)


def test_an_operator_does_nothing_until_the_definition_keeps_what_it_writes(own: Room) -> None:
    newer = yaml.safe_load((CRD).read_text())
    older = deepcopy(newer)
    status = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    del status["x-kubernetes-preserve-unknown-fields"], status["properties"]["retryHandled"]
    own.cluster.kubectl("replace", "--filename=-", stdin=json.dumps(older))
    try:
        operator = own.start_operator()
        own.apply(small_job())
        own.until(
            lambda: "drops status.retryHandled; no job is touched until it is renewed" in operator.log.read_text()
        )
        with pytest.raises(HTTPError, match="503"):
            urlopen(f"http://{operator.address}/readyz", timeout=300)
        assert own.status() == {}
    finally:
        chart = ROOT / "charts" / "sft-operator" / "crds"
        own.cluster.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={chart}")
    own.until(lambda: own.status().get("phase"))
    with urlopen(f"http://{operator.address}/readyz", timeout=300) as answer:
        assert answer.read() == b"at work\n"
    unknown = {"status": {"future": [1], "attempts": {"budget": 5}}}
    own.kubectl("patch", "sftjob", "small", "--subresource=status", "--type=merge", f"--patch={json.dumps(unknown)}")
    own.kubectl("patch", "sftjob", "small", "--type=merge", '--patch={"spec":{"runPolicy":{"suspend":true}}}')
    suspended = own.until_phase("Suspended")
    assert (suspended["future"], suspended["attempts"]["budget"]) == ([1], 5)
