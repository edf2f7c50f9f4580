"""Reads chats from a JSONL file.

In: a file whose lines are each an object with `messages`, or a bare list of messages. Out: a `Chat` a line, or a
`Fault` that says what is wrong with it; nothing is raised for a single line, so that several can be reported
together. `prepare` calls `scan` to learn the file's digest and ranges, `tokenize` reads a range.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftjob.failure import JobFailure, Reason

ROLES = ("system", "user", "assistant", "tool")
_PASSED_ON = ("name", "tool_call_id")
"""Fields besides role, content and loss that templates know."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Chat:
    line: int
    messages: list[dict[str, str]]
    """Role and content of each message, as templates take them."""
    trained: list[bool]
    """For each message, whether its tokens are trained."""


@dataclass(frozen=True)
class Fault:
    line: int
    problem: str
    """`<field>: <what>; <remedy>`"""


@dataclass(frozen=True)
class LineRange:
    """Whole lines of a file."""

    start: int
    """Byte at which the first line begins."""
    end: int
    first_line: int
    """Counted from 1."""


@dataclass(frozen=True)
class Scan:
    sha256: str
    lines: int
    ranges: list[LineRange]


class _Refused(Exception):
    pass


def scan(path: Path, *, ranges: int) -> Scan:
    """One pass over the file: its digest, its number of lines, and ranges of about equal size.

    Raises JobFailure where there is no such file, or nothing in it.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            wanted = [size * part // ranges for part in range(1, ranges)]
            hashed, position, lines, starts, tail = hashlib.sha256(), 0, 0, [(0, 1)], b""
            while chunk := file.read(_CHUNK_BYTES):
                hashed.update(chunk)
                tail = chunk[-1:]
                while wanted and wanted[0] < position + len(chunk):
                    cut = chunk.find(b"\n", max(0, wanted[0] - position))
                    if cut < 0:
                        break
                    starts.append((position + cut + 1, lines + chunk.count(b"\n", 0, cut + 1) + 1))
                    wanted = [place for place in wanted if place > position + cut]
                lines += chunk.count(b"\n")
                position += len(chunk)
    except FileNotFoundError:
        raise JobFailure(Reason.INVALID_DATA, f"{path}: there is no such file; correct the dataset's path") from None
    except IsADirectoryError:
        raise JobFailure(Reason.INVALID_DATA, f"{path}: is a folder; name one JSONL file in it") from None
    except PermissionError:
        raise JobFailure(Reason.INVALID_DATA, f"{path}: may not be read; give this process access to it") from None
    starts = [start for start in starts if start[0] < position]
    if not starts:
        raise JobFailure(Reason.INVALID_DATA, f"{path}: the file is empty; write one chat a line")
    ends = [start for start, _ in starts[1:]] + [position]
    split = [LineRange(start, end, first) for (start, first), end in zip(starts, ends, strict=True)]
    return Scan(sha256=hashed.hexdigest(), lines=lines + (tail != b"\n"), ranges=split)


def read_chats(path: Path, lines: LineRange) -> Iterator[Chat | Fault]:
    """The chats of a range; lines of white space are passed over."""
    with path.open("rb") as file:
        file.seek(lines.start)
        position, number = lines.start, lines.first_line
        while position < lines.end and (raw := file.readline()):
            position += len(raw)
            if raw.strip():
                try:
                    yield _chat(number, raw)
                except _Refused as refused:
                    yield Fault(number, str(refused))
            number += 1


def _chat(number: int, raw: bytes) -> Chat:
    messages = _messages(_parsed(raw, is_first=number == 1))
    plain, trained = [], []
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        plain.append(_message(field, message))
        trained.append(_is_trained(field, message))
    if not any(trained):
        raise _Refused("messages: no token of this chat would be trained; add an assistant turn without `loss: false`")
    return Chat(number, plain, trained)


def _parsed(raw: bytes, *, is_first: bool) -> Any:
    try:
        text = raw.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        raise _Refused(f"(line): byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise _Refused(
            f"(line): broken JSON, {error.msg} at column {error.colno}; write one whole JSON value a line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise _Refused(f"(line): not readable as JSON, {error}; write one whole JSON value a line") from None


def _messages(value: Any) -> list[Any]:
    if isinstance(value, dict):
        if "messages" not in value:
            raise _Refused("messages: missing; write an object with a list `messages`")
        if value.get("tools"):
            raise _Refused("tools: descriptions of tools can't be used yet; remove the field")
        value = value["messages"]
    elif not isinstance(value, list):
        raise _Refused(f"(line): is {_kind(value)}; write an object with `messages`, or a list of messages")
    if not isinstance(value, list):
        raise _Refused(f"messages: is {_kind(value)}; write a list of messages")
    if not value:
        raise _Refused("messages: empty; write at least a user and an assistant message")
    return value


def _message(field: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _Refused(f"{field}: is {_kind(message)}; write an object with `role` and `content`")
    for name in message:
        if name not in ("role", "content", "loss", *_PASSED_ON) and message[name] is not None:
            raise _Refused(f"{field}.{name}: unknown field; known here: role, content, loss, {', '.join(_PASSED_ON)}")
    plain = {}
    for name in ("role", "content", *_PASSED_ON):
        if name not in message or (message[name] is None and name in _PASSED_ON):
            if name in _PASSED_ON:
                continue
            raise _Refused(f"{field}.{name}: missing; add it")
        plain[name] = _text(f"{field}.{name}", message[name])
    if plain["role"] not in ROLES:
        raise _Refused(f"{field}.role: {plain['role'][:40]!r} is not known; use one of {', '.join(ROLES)}")
    return plain


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused(f"{field}: is {_kind(value)}; write a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Refused(
            f"{field}: character {error.start + 1} is half of a surrogate pair; write the whole character"
        ) from None
    return value


def _is_trained(field: str, message: dict[str, Any]) -> bool:
    is_assistant = bool(message["role"] == "assistant")
    loss = message.get("loss")
    if loss is None:
        return is_assistant
    if not isinstance(loss, bool):
        raise _Refused(f"{field}.loss: is {_kind(loss)}; write true or false")
    if loss and not is_assistant:
        raise _Refused(f"{field}.loss: true for the role {message['role']!r}; only assistant turns can be trained")
    return loss


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
