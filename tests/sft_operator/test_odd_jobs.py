"""Thousands of odd and broken objects through validation and the operator's own code: what is refused names its path,
what is not lives and dies as any job does."""

import json
import random
import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from jobs import NOW, observing, seen
from pydantic import ValidationError

from sft_operator.kubernetes.mounts import path_of
from sft_operator.kubernetes.pytorch_job import TrainerDefaults, pytorch_job
from sft_operator.kubernetes.story import story
from sft_operator.lifecycle.decide import CreateAttempt, Decision, decide
from sft_operator.lifecycle.observation import NodeState, Observation, Trouble
from sft_operator.lifecycle.plan import launch_plan
from sftjob.failure import Obstacle, Reason, exit_code
from sftjob.job import SFTJob, parse_manifest
from sftjob.outcome import Outcome
from sftjob.plan import LaunchPlan
from sftjob.problems import Problem, SpecError, problems_of
from sftjob.progress import Progress, Resolved, Stage
from sftjob.receipt import DataReceipt, DatasetReceipt
from tests.sftjob.odd_jobs import odd_job

PATH = re.compile(r"(apiVersion|kind|metadata|spec)(\.[^\s:]+|\[\d+\])*")
LONG = ("", "m" * 900, "\N{FULL BLOCK}" * 600, "\x1b[31m" * 100, "😀" * 300)


def assert_tells_places(problems: list[Problem], number: int) -> None:
    assert problems
    for problem in problems:
        assert PATH.match(problem.path), (number, problem)
        assert problem.found, (number, problem)
        assert problem.remedy, (number, problem)
        assert "\n" not in str(problem), (number, problem)


def stored(document: dict[str, Any], number: int) -> SFTJob | None:
    """As the operator reads it from an API server that took it. None where it can't be read."""
    metadata = document.get("metadata", {}) | {"uid": f"uid-{number}", "namespace": "team", "resourceVersion": "1"}
    try:
        return SFTJob.model_validate(document | {"metadata": metadata}, extra="ignore")
    except ValidationError as error:
        assert_tells_places(problems_of(error, SFTJob), number)
        return None


def an_odd_outcome(chance: random.Random, attempt: int, rank: int) -> Outcome | None:
    if chance.random() < 0.1:
        return None
    reason = chance.choice([*Reason, Reason("FromTheFuture"), Reason("R" * 3500)])
    return Outcome.from_json(
        Outcome(
            attempt=attempt,
            node_rank=rank,
            reason=reason,
            exit_code=exit_code(reason),
            message=chance.choice(LONG),
            log_tail=chance.choice(LONG),
            skipped_checkpoints=[f"step-{n}: {chance.choice(LONG)}"[:300] for n in range(chance.choice((0, 1, 9)))],
            last_step=chance.choice((None, 0, attempt * 3, 2**53)),
            saved_step=chance.choice((None, 0, attempt * 2, 2**53)),
            started_at=NOW,
            ended_at=NOW + timedelta(seconds=chance.choice((-100_000, 0, 5, 100_000))),
        ).to_message()
    )


def an_odd_report(chance: random.Random, attempt: int) -> Progress:
    counts: dict[str, int] = dict.fromkeys(("samples", "tokens", "trained_tokens", "truncated", "dropped"), 2**53)
    sets = [DatasetReceipt(name="d" * 63, format="prompt-completion", **counts) for _ in range(chance.choice((1, 64)))]
    rows = ["r" * 200] * chance.choice((0, 20))
    return Progress(
        attempt=attempt + chance.choice((-1, 0, 0, 0)),
        stage=chance.choice([*Stage, Stage("FromTheFuture"), Stage("s" * 30_000)]),
        detail=chance.choice(LONG),
        step=chance.choice((0, 5, attempt * 3)),
        total_steps=chance.choice((None, 0, 9)),
        loss=chance.choice((None, 0.0, 1e308)),
        eta_seconds=chance.choice((None, 0, 2**53)),
        saved_step=chance.choice((None, 0, attempt)),
        resolved=chance.choice((None, Resolved(model_revision="r" * 25_000, data_revisions=["r" * 64] * 300))),
        data=chance.choice((None, DataReceipt(packs=1, first_bad_lines=rows, datasets=sets, **counts))),
        reported_at=NOW + timedelta(seconds=attempt),
    )


def odd_observation(job: SFTJob, chance: random.Random) -> Observation:
    current, nodes = job.status.attempts.current, min(job.spec.compute.nodes, 3)
    outcomes = [an_odd_outcome(chance, current, rank) for rank in range(nodes)]
    states = [chance.choice((NodeState.PENDING, NodeState.RUNNING, outcomes[rank])) for rank in range(nodes)]
    trouble = Trouble(chance.choice(list(Obstacle)), chance.choice((*LONG, "e" * 30_000)))
    attempts = chance.choice(([seen(current, *states)], [seen(current, *outcomes)], []))
    return observing(
        *attempts,
        progress=chance.choice((None, an_odd_report(chance, current))),
        trouble=chance.choice((None, trouble)),
        silent_seconds=chance.choice((0.0, 1e9)),
    )


def assert_lives(job: SFTJob, number: int) -> None:
    """Through odd attempts; of each what would be written to the API server is looked at."""
    chance, now = random.Random(number), NOW
    observation = Observation()
    for _ in range(25):
        decision = decide(job, observation, now=now)
        assert_can_be_written(job, decision, number)
        after = job.model_copy(update={"status": decision.status})
        assert_settles(after, observation, now, number)
        json.dumps(story(after, before=job.status))
        job, now = after, now + timedelta(seconds=chance.choice((1, 400)))
        observation = odd_observation(job, chance) if job.status.attempts.current else Observation()


def assert_settles(job: SFTJob, observation: Observation, now: datetime, number: int) -> None:
    """While nothing changes nothing is written any more."""
    for _ in range(4):
        status = decide(job, observation, now=now).status
        if status == job.status:
            return
        job = job.model_copy(update={"status": status})
    raise AssertionError(number)


def assert_can_be_written(job: SFTJob, decision: Decision, number: int) -> None:
    assert len(decision.status.to_json().encode()) < 16 * 1024, number
    if isinstance(decision.action, CreateAttempt):
        plan = launch_plan(job, decision.action.number, path_of=path_of)
        assert LaunchPlan.from_json(plan.to_json()) == plan, number
        body = pytorch_job(job.model_copy(update={"status": decision.status}), plan, TrainerDefaults("image"))
        assert len(json.dumps(body)) < 1024 * 1024, number


def look_at(number: int) -> None:
    document = odd_job(number)
    try:
        parse_manifest(document)
    except SpecError as refused:
        assert_tells_places(refused.problems, number)
    job = stored(document, number)
    # `file://` is refused by every API server, and has no place in a pod.
    if job is not None and not any(uri.startswith("file://") for uri in job.spec.uris):
        assert_lives(job, number)


def test_odd_jobs_are_refused_with_a_path_or_live_like_any_other() -> None:
    for number in range(1000):
        look_at(number)


@pytest.mark.full
def test_ten_thousand_odd_jobs_are_refused_with_a_path_or_live_like_any_other() -> None:
    for number in range(1000, 11_000):
        look_at(number)
