"""Odd jobs through the real API server while an operator is at work: what becomes of each.

Called by the cluster's tests.
"""

import json
import re
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kubernetes.client import ApiException, CustomObjectsApi
from kubernetes.config import new_client_from_config
from operator_room import Operator, Room

from tests.sftjob.odd_jobs import odd_job

AT_ONCE = 250
"""Accepted ones are deleted before the next are tried."""
MAXIMAL_BYTES = 16 * 1024
PLACE = re.compile(r"\b(apiVersion|kind|metadata|spec)\b(\.\w+|\[\w+\])*")
_NOT_ALL = "some validation rules were not checked"

NOTHING_RUNS = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "nothing-runs"},
    "spec": {"hard": {"count/pytorchjobs.kubeflow.org": "0"}},
}
"""A PyTorchJob is built and judged, and refused at the last door."""


def assert_odd_jobs_do_no_harm(room: Room, operator: Operator, numbers: Sequence[int]) -> None:
    """The operator serves on `operator.address`."""
    room.apply(NOTHING_RUNS)
    api = CustomObjectsApi(new_client_from_config(str(room.cluster.folder / "kubeconfig")))
    accepted = 0
    for first in range(0, len(numbers), AT_ONCE):
        batch = numbers[first : first + AT_ONCE]
        with ThreadPoolExecutor(4) as threads:
            answers = threads.map(lambda number: _refusal(api, room.namespace, number), batch)
            refusals = dict(zip(batch, answers, strict=True))
        for number, refusal in refusals.items():
            assert refusal is None or names_places(refusal), (number, refusal)
        names = {f"odd-{number}" for number, refusal in refusals.items() if refusal is None}
        accepted += len(names)
        for job in room.until(lambda names=names: _handled(room, names)):
            assert_told(job)
        room.kubectl("delete", "sftjobs", "--all", "--wait=false")
        assert_well(operator)
    assert accepted > len(numbers) / 10


def names_places(refusal: dict[str, Any]) -> bool:
    """Of an answer of the API server: each of its causes, but that it has not looked for more of them."""
    assert refusal["code"] in (400, 422), refusal
    causes = [cause for cause in refusal.get("details", {}).get("causes", []) if _NOT_ALL not in cause["message"]]
    return bool(PLACE.search(refusal["message"])) and all(
        PLACE.search(f"{cause.get('field', '')} {cause['message']}") for cause in causes
    )


def assert_told(job: dict[str, Any]) -> None:
    status = job["status"]
    assert len(json.dumps(status).encode()) < MAXIMAL_BYTES, job
    (accepted,) = [condition for condition in status["conditions"] if condition["type"] == "Accepted"]
    assert accepted["status"] == "True" or PLACE.search(accepted["message"]), job


def assert_well(operator: Operator) -> None:
    assert operator.process.poll() is None
    log = operator.log.read_text()
    for fault in ("Traceback", "starting anew"):
        assert fault not in log, log[-4000:]
    figures = dict(_figures(operator))
    assert figures["sft_operator_leads"] == 1
    # A key that is due waits for one of the slots, and no longer than a pass takes.
    assert figures["sft_operator_oldest_key_age_seconds"] < 60


def _figures(operator: Operator) -> Iterator[tuple[str, float]]:
    with urllib.request.urlopen(f"http://{operator.address}/metrics", timeout=300) as answer:
        for line in answer.read().decode().splitlines():
            if not line.startswith("#") and "{" not in line:
                name, value = line.split()
                yield name, float(value)


def _refusal(api: CustomObjectsApi, namespace: str, number: int) -> dict[str, Any] | None:
    document = odd_job(number)
    if isinstance(document["metadata"], dict):
        document["metadata"]["namespace"] = namespace
    try:
        api.create_namespaced_custom_object(
            "sftjob.dev", "v1alpha1", namespace, "sftjobs", document, field_validation="Strict"
        )
    except ApiException as error:
        refusal: dict[str, Any] = json.loads(error.body)
        return refusal
    return None


def _handled(room: Room, names: set[str]) -> list[dict[str, Any]] | None:
    """All of them, once the operator has told of each."""
    jobs = [job for job in room.items("sftjobs") if job["metadata"]["name"] in names]
    return jobs if len(jobs) == len(names) and all(job.get("status", {}).get("conditions") for job in jobs) else None
