"""A status's conditions, derived from the rest of it. Called by `decide` last."""

from collections.abc import Iterator
from datetime import datetime
from typing import get_args

from sft_operator.lifecycle.budgets import Failure
from sft_operator.lifecycle.observation import Trouble
from sft_operator.lifecycle.preflight import attempt_in_words
from sftjob.status import Condition, ConditionType, Phase, SFTJobStatus

MESSAGE_LIMIT = 2000
"""Characters: a cluster's own words have no bound."""


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
    before = {condition.type: condition for condition in status.conditions}
    after = []
    for type_, holds, reason, message in _facts(status, failure, trouble, queue_message):
        if not holds and type_ not in before:
            continue
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
    return after + [condition for condition in status.conditions if condition.type not in get_args(ConditionType)]


def _facts(
    status: SFTJobStatus, failure: Failure | None, trouble: Trouble | None, queue_message: str
) -> Iterator[tuple[ConditionType, bool, str, str]]:
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
