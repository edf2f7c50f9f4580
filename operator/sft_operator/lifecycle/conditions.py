"""A status's conditions, derived from the rest of it. Called by `decide` last.

Of an object that can't be read they are told by `refused`, which its store calls.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import get_args

from sft_operator.lifecycle.budgets import Failure
from sft_operator.lifecycle.observation import Trouble
from sft_operator.lifecycle.preflight import attempt_in_words
from sftjob.failure import Obstacle
from sftjob.status import Condition, ConditionType, Phase, SFTJobStatus

MESSAGE_LIMIT = 2000
"""Characters: a cluster's own words have no bound."""

_Fact = tuple[ConditionType, bool, str, str]
"""Type, whether it holds, reason, message."""


def conditions(
    status: SFTJobStatus,
    *,
    generation: int,
    failure: Failure | None,
    trouble: Trouble | None,
    queue_message: str = "",
    now: datetime,
) -> list[Condition]:
    """Those that hold, and those that once did. A condition keeps its transition time while its status stays.

    One that this version does not know is another's, and stays as it is.
    """
    before = {condition.type for condition in status.conditions}
    facts = _facts(status, failure, trouble, queue_message)
    told = [fact for fact in facts if fact[1] or fact[0] in before]
    return _with_facts(status.conditions, told, generation=generation, now=now)


def refused(status: SFTJobStatus, *, message: str, generation: int, now: datetime) -> SFTJobStatus:
    """Of a job whose spec breaks this version's rules, and says why: nothing is done, and what it was is kept."""
    reason = Obstacle.INVALID_SPEC.value
    told: list[_Fact] = [
        ("Accepted", False, reason, message),
        ("Stalled", True, reason, message),
        ("Reconciling", False, reason, ""),
    ]
    facts = _with_facts(of_generation(status.conditions, generation), told, generation=generation, now=now)
    return status.model_copy(update={"observed_generation": generation, "conditions": facts})


def of_generation(conditions: Iterable[Condition], generation: int) -> list[Condition]:
    """As they are, of a spec that was edited since: `kubectl wait` passes over one that speaks of an older spec."""
    own = get_args(ConditionType)
    return [
        condition.model_copy(update={"observed_generation": generation}) if condition.type in own else condition
        for condition in conditions
    ]


def _with_facts(
    conditions: list[Condition], facts: Iterable[_Fact], *, generation: int, now: datetime
) -> list[Condition]:
    """The facts, and the conditions of which they tell nothing."""
    before = {condition.type: condition for condition in conditions}
    after = []
    for type_, holds, reason, message in facts:
        condition = Condition(
            type=type_,
            status="True" if holds else "False",
            reason=reason,
            message=message[:MESSAGE_LIMIT],
            observed_generation=generation,
            last_transition_time=now,
        )
        if type_ in before and before[type_].status == condition.status:
            condition = condition.model_copy(update={"last_transition_time": before[type_].last_transition_time})
        after.append(condition)
    told = {condition.type for condition in after}
    return after + [condition for condition in conditions if condition.type not in told]


def _facts(
    status: SFTJobStatus, failure: Failure | None, trouble: Trouble | None, queue_message: str
) -> Iterator[_Fact]:
    phase = status.phase
    attempt = attempt_in_words(status.attempts)
    yield "Accepted", True, "Valid", ""
    yield "Running", phase is Phase.RUNNING, phase.value, attempt

    saved = status.saved_step
    yield "CheckpointAvailable", saved is not None, "CheckpointSaved", f"step {saved}"

    yield "Suspended", phase is Phase.SUSPENDED, phase.value, attempt if phase is Phase.SUSPENDED else ""
    yield "Complete", phase is Phase.SUCCEEDED, "Succeeded", f"attempt {status.attempts.current}"
    yield "Failed", failure is not None, failure.reason if failure else phase.value, failure.message if failure else ""

    # What kstatus reads: at work, or stopped until somebody changes something.
    obstacle = failure or trouble
    yield (
        "Stalled",
        obstacle is not None,
        obstacle.reason if obstacle else phase.value,
        obstacle.message if obstacle else "",
    )
    is_settled = phase.is_final or phase is Phase.SUSPENDED or obstacle is not None
    doing = queue_message if phase is Phase.QUEUED and queue_message else attempt
    yield "Reconciling", not is_settled, phase.value, "" if is_settled else doing
