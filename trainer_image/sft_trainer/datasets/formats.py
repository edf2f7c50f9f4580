"""The formats that rows are written in, each turned into what is tokenised: a `Chat` or a `Passage`.

In: a row as JSON has it, and `columns`: for fields that its dataset's rows have under other names, these. Called by
`tokenize` for each row, and by `open_tokens` to find a file's format.

    messages           {"messages": [...]}, or the bare list: OpenAI's
    sharegpt           {"conversations": [{"from": "human", "value": ...}, ...]}
    prompt-completion  {"prompt": ..., "completion": ...}: two strings, or two lists of messages, as TRL has it
    alpaca             {"instruction": ..., "input": ..., "output": ...}
    text               {"text": ...}

A chat may have `system` and `tools` beside its turns, in any format. Fields that would change what a chat template
writes and are not read here are refused; all others are the owner's notes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sft_trainer.datasets.messages import Messages, message_list, tools_of
from sft_trainer.datasets.values import Refused, kind_of, object_of, objects_of, string_of
from sftjob.forms import formats_with

OWN = "own"
"""In place of a format, where a user's own function reads the rows."""
_MARKS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""Fields by which a row is known, in this order: Alpaca's own file has `text` besides."""
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_UNREAD = {
    "functions": "OpenAI's older form can't be used; write them as `tools`, each under `function`",
    "chat_template_kwargs": "can't be used; remove it, or use a model or chatTemplate that needs none",
}
_OF_CHATS = ("system", "tools", *_UNREAD)
_NOT_IN_EACH_ROW = ("input", "system", "tools")
_AS_THEY_ARE: Mapping[str, str] = {}
_NAME = re.compile(r"^\w+")
_PLACE = re.compile(r"messages(\[(?P<index>\d+)\])?(?=[.:])")


@dataclass(frozen=True)
class Chat:
    """Rendered by a chat template."""

    messages: Messages
    trained: list[bool]
    """For each message, whether its tokens are trained."""
    tools: list[dict[str, Any]] | None = None
    fields: tuple[str, ...] = field(default=(), compare=False)
    """Where the row has each message; `messages[i]` without them."""
    answers: str = field(default="messages", compare=False)
    """Where the row has what is trained."""

    def in_its_words(self, problem: str) -> str:
        """Of a problem that is told of `messages` or `messages[i]`: told of the row's own fields."""
        if self.fields and (place := _PLACE.match(problem)):
            own = self.fields[int(place["index"])] if place["index"] else self.answers
            return own + problem[place.end() :]
        return problem


@dataclass(frozen=True)
class Passage:
    """Tokenised as it stands, with an end-of-text token behind it."""

    prompt: str
    """Not trained; may be empty."""
    completion: str
    answers: str = field(default="text", compare=False)
    """Where the row has what is trained."""


def known_format(row: Any, columns: Mapping[str, str] = _AS_THEY_ARE) -> str:
    """Raises Refused for a row of no known format, or one that lacks a column."""
    if isinstance(row, list) and not columns:
        return "messages"
    candidates = formats_with(columns)
    if not isinstance(row, dict):
        wanted = _fields(candidates[0], columns)
        other = "name no `columns` for lists" if isinstance(row, list) else "a list of messages"
        raise Refused(f"(line): is {kind_of(row)}; write an object with {wanted}, or {other}")
    named = _renamed(row, columns)
    for name in candidates:
        if all(field in named for field in _MARKS[name]):
            return name
    known = "; or ".join(
        f"{' and '.join(_in_row(mark, columns) for mark in _MARKS[name])} ({name})" for name in candidates
    )
    raise Refused(f"(line): has {_shown_fields(row)}, of no known format; write {known}, or name the rows' `columns`")


def sample_of(row: Any, row_format: str, columns: Mapping[str, str] = _AS_THEY_ARE) -> Chat | Passage:
    """Raises Refused, which begins with the row's own name of a field."""
    if isinstance(row, list) and row_format == "messages" and not columns:
        row = {"messages": row}
    if not isinstance(row, dict):
        raise Refused(f"(line): is {kind_of(row)}; write an object with {_fields(row_format, columns)}")
    if not columns:
        return _sample_of(row, row_format, columns)
    try:
        sample = _sample_of(_renamed(row, columns), row_format, columns)
    except Refused as refused:
        raise Refused(_in_row(str(refused), columns)) from None
    answers = _in_row(sample.answers, columns)
    if isinstance(sample, Passage):
        return replace(sample, answers=answers)
    return replace(sample, answers=answers, fields=tuple(_in_row(place, columns) for place in sample.fields))


def _sample_of(row: dict[str, Any], row_format: str, columns: Mapping[str, str]) -> Chat | Passage:
    for mark in _MARKS[row_format]:
        if mark not in row:
            raise Refused(
                f"{mark}: missing; write an object with {_fields(row_format, columns)}, as this file's format "
                f"{row_format} has it"
            )
    sample = _READERS[row_format](row)
    if isinstance(sample, Chat) and not any(sample.trained):
        raise Refused(
            f"{field_of(row_format)}: no token of this chat would be trained; "
            "add an assistant turn without `loss: false`"
        )
    return sample


def field_of(row_format: str, columns: Mapping[str, str] = _AS_THEY_ARE) -> str:
    """Where its rows have what is trained."""
    return "(line)" if row_format == OWN else _in_row(_MARKS[row_format][-1], columns)


def _renamed(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """With the formats' names for what has other ones, and nothing else under these."""
    for name, column in columns.items():
        if column not in row and name not in _NOT_IN_EACH_ROW:
            raise Refused(
                f"(line): has {_shown_fields(row)}, but no {column!r}, which `columns` names for {name}; correct the "
                "row or `columns`"
            )
    kept = {name: value for name, value in row.items() if name not in columns and name not in columns.values()}
    return kept | {name: row[column] for name, column in columns.items() if column in row}


def _in_row(told: str, columns: Mapping[str, str]) -> str:
    """A field, or what begins with one, with the row's own name for it."""
    return _NAME.sub(lambda name: columns.get(name[0], name[0]), told)


def _shown_fields(row: dict[str, Any]) -> str:
    return f"the fields {', '.join(map(repr, list(row)[:8]))}" if row else "no fields"


def _fields(row_format: str, columns: Mapping[str, str]) -> str:
    return " and ".join(f"`{_in_row(mark, columns)}`" for mark in _MARKS[row_format])


def _from_messages(row: dict[str, Any]) -> Chat:
    messages, trained = message_list("messages", row["messages"])
    return _chat(row, messages, trained, [f"messages[{index}]" for index in range(len(messages))], answers="messages")


def _chat(row: dict[str, Any], messages: Messages, trained: list[bool], fields: list[str], *, answers: str) -> Chat:
    """With what the row says of it beside its turns, which are in `fields`."""
    for name, problem in _UNREAD.items():
        if row.get(name):
            raise Refused(f"{name}: {problem}")
    system = _system(row, fields[0], messages[0])
    return Chat(
        [*system, *messages],
        [False] * len(system) + trained,
        tools_of(row.get("tools")),
        (*("system" for _ in system), *fields),
        answers,
    )


def _system(row: dict[str, Any], field: str, first: dict[str, Any]) -> Messages:
    """None where the chat begins with it anyway; `first` is its first message, in `field`."""
    if not row.get("system"):
        return []
    system = string_of("system", row["system"])
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": system}]
    if first["content"] != system:
        raise Refused(f"system: given, but {field} has the role {first['role']} and other words; remove one")
    return []


def _from_sharegpt(row: dict[str, Any]) -> Chat:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise Refused(f"conversations: is {kind_of(turns)}; write a list of objects with `from` and `value`")
    fields = [f"conversations[{index}]" for index in range(len(turns))]
    written = [_turn(field, turn) for field, turn in zip(fields, turns, strict=True)]
    messages, trained = message_list("conversations", written)
    return _chat(row, messages, trained, fields, answers="conversations")


def _turn(field: str, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise Refused(f"{field}: is {kind_of(turn)}; write an object with `from` and `value`")
    for name in ("from", "value"):
        if name not in turn:
            raise Refused(f"{field}.{name}: missing; write an object with `from` and `value`")
    for name, value in turn.items():
        if name not in ("from", "value", "loss", "weight") and value is not None:
            raise Refused(f"{field}.{name}: unknown field; known here: from, value, loss, weight")
    speaker, value = string_of(f"{field}.from", turn["from"]), string_of(f"{field}.value", turn["value"])
    if speaker not in _SPEAKERS:
        raise Refused(f"{field}.from: {speaker[:40]!r} is not known; use one of {', '.join(_SPEAKERS)}")
    loss, weight = turn.get("loss"), turn.get("weight")
    if weight is not None:
        if weight not in (0, 1):
            raise Refused(f"{field}.weight: {weight!r} is not known; write 0 or 1")
        loss = bool(weight) and _SPEAKERS[speaker] == "assistant"
    message = {"role": _SPEAKERS[speaker], "loss": loss}
    if speaker == "function_call":
        return message | {"tool_calls": _calls(f"{field}.value", value)}
    return message | {"content": value}


def _calls(field: str, value: str) -> list[dict[str, Any]]:
    """A call, or a list of them, as JSON: `{"name": ..., "arguments": {...}}`."""
    is_list = value.lstrip().startswith("[")
    calls = []
    for index, call in enumerate(objects_of(field, value if is_list else f"[{value}]")):
        place = f"{field}[{index}]" if is_list else field
        name = string_of(f"{place}.name", call.get("name"))
        calls.append({"function": {"name": name, "arguments": object_of(f"{place}.arguments", call.get("arguments"))}})
    return calls


def _from_pair(row: dict[str, Any]) -> Chat | Passage:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        for name in _OF_CHATS:
            if row.get(name):
                raise Refused(
                    f"{name}: given, but prompt and completion are strings, which no chat template writes; "
                    "write two lists of messages, or remove it"
                )
        return Passage(string_of("prompt", prompt), string_of("completion", completion), "completion")
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise Refused(
            f"completion: is {kind_of(completion)} where prompt is {kind_of(prompt)}; "
            "write two strings, or two lists of messages"
        )
    asked, not_trained = message_list("prompt", prompt, trains_assistants=False)
    answered, trained = message_list("completion", completion)
    fields = [f"{name}[{index}]" for name in ("prompt", "completion") for index in range(len(row[name]))]
    return _chat(row, asked + answered, not_trained + trained, fields, answers="completion")


def _from_alpaca(row: dict[str, Any]) -> Chat:
    if row.get("history"):
        raise Refused("history: earlier turns can't be used; write the chat as `messages`")
    question = string_of("instruction", row["instruction"])
    if row.get("input") is not None and (details := string_of("input", row["input"])):
        question += f"\n\n{details}"
    answer = string_of("output", row["output"])
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return _chat(row, chat, [False, True], ["instruction", "output"], answers="output")


def _from_text(row: dict[str, Any]) -> Passage:
    return Passage("", string_of("text", row["text"]))


_READERS: dict[str, Callable[[dict[str, Any]], Chat | Passage]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt-completion": _from_pair,
    "alpaca": _from_alpaca,
    "text": _from_text,
}
