"""A status that an object has room for: what gives way where it would be larger. Called by `decide` last.

What is told is bounded part by part where it is made; together, or in characters of many bytes, it can still be too
much.
"""

from typing import Any

from sftjob.status import AttemptRecord, SFTJobStatus

MAXIMAL_BYTES = 16 * 1024
WORD_CHARACTERS, LIST_LENGTH = 80, 10
"""What is left of each at last: a digest, ten attempts."""


def bounded(status: SFTJobStatus) -> SFTJobStatus:
    """The lists of the data give way first, the stories of older attempts, the conditions, the newest story.

    At last every word is cut, whosever it is: a job's own image can answer anything where ours tells a stage.
    """
    for smaller in (_without_lists, _with_short_stories, _with_short_conditions, _with_short_words, _cut):
        if len(status.to_json().encode()) < MAXIMAL_BYTES:
            break
        status = smaller(status)
    return status


def _without_lists(status: SFTJobStatus) -> SFTJobStatus:
    return status.model_copy(update={"data": status.data and status.data.shortened()})


def _with_short_stories(status: SFTJobStatus) -> SFTJobStatus:
    newest, older = status.attempts.history[:1], status.attempts.history[1:]
    history = [*newest, *(_in_short(record, characters=60) for record in older)]
    return status.model_copy(update={"attempts": status.attempts.model_copy(update={"history": history})})


def _with_short_conditions(status: SFTJobStatus) -> SFTJobStatus:
    conditions = [one.model_copy(update={"message": one.message[:300]}) for one in status.conditions]
    return status.model_copy(update={"conditions": conditions})


def _with_short_words(status: SFTJobStatus) -> SFTJobStatus:
    attempts, progress = status.attempts, status.progress
    history = [_in_short(record, characters=300).model_copy(update={"standstill": None}) for record in attempts.history]
    ending = attempts.ending and _in_short(attempts.ending, characters=300)
    told: dict[str, Any] = {"detail": progress and progress.detail and progress.detail[:60], "skipped_checkpoints": []}
    return status.model_copy(
        update={
            "attempts": attempts.model_copy(update={"history": history, "ending": ending}),
            "progress": progress and progress.model_copy(update=told),
        }
    )


def _cut(status: SFTJobStatus) -> SFTJobStatus:
    cut = SFTJobStatus.model_validate(_with_cut(status.to_json_dict()), extra="allow")
    # The operator's own word, which the next attempt's pods need whole.
    return cut.model_copy(update={"attempts": cut.attempts.model_copy(update={"image": status.attempts.image})})


def _with_cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:WORD_CHARACTERS]
    if isinstance(value, list):
        return [_with_cut(item) for item in value[:LIST_LENGTH]]
    return {name: _with_cut(item) for name, item in value.items()} if isinstance(value, dict) else value


def _in_short(record: AttemptRecord, *, characters: int) -> AttemptRecord:
    return record.model_copy(update={"message": record.message[:characters], "log_tail": "", "skipped_checkpoints": []})
