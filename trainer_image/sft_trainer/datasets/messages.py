"""OpenAI messages: what they must be, and which are trained.

In: a list as it stands in a row. Out: the messages as chat templates take them, and a flag for each. Called by
`formats`, which turns most other formats into such a list first. What is wrong is raised as `Refused`.
"""

from typing import Any

from sft_trainer.datasets.values import Refused, kind_of, object_of, objects_of, string_of

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = "reasoning_content"
_REASONING_NAMES = (REASONING, "thinking")
_STRINGS = ("name", "tool_call_id")
_OF_ASSISTANTS = ("tool_calls", *_REASONING_NAMES)
_KNOWN = ("role", "content", "loss", *_STRINGS, *_OF_ASSISTANTS)

Messages = list[dict[str, Any]]


def message_list(field: str, value: Any, *, trains_assistants: bool = True) -> tuple[Messages, list[bool]]:
    """Thoughts are under `reasoning_content`, whatever they were called; arguments of calls are objects."""
    if not isinstance(value, list):
        raise Refused(f"{field}: is {kind_of(value)}; write a list of messages")
    if not value:
        raise Refused(f"{field}: empty; write at least a user and an assistant message")
    plain, trained = [], []
    for index, message in enumerate(value):
        place = f"{field}[{index}]"
        plain.append(_message(place, message))
        trained.append(_is_trained(place, message, otherwise=trains_assistants))
    return plain, trained


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """Descriptions of tools; None where there are none, as a table's empty string says too."""
    return objects_of("tools", value) or None if value else None


def _message(field: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise Refused(f"{field}: is {kind_of(message)}; write an object with `role` and `content`")
    given = {name: value for name, value in message.items() if value is not None}
    for name in given:
        if name not in _KNOWN:
            raise Refused(f"{field}.{name}: unknown field; known here: {', '.join(_KNOWN)}")
    plain = {"role": _role(field, message)}
    for name in _OF_ASSISTANTS:
        if name in given and plain["role"] != "assistant":
            raise Refused(f"{field}.{name}: stands in a message of the role {plain['role']!r}; only assistants have it")
    calls = _calls(f"{field}.tool_calls", given["tool_calls"]) if "tool_calls" in given else []
    plain["content"] = "" if calls and "content" not in given else _content(field, message)
    if calls:
        plain["tool_calls"] = calls
    thoughts = [name for name in _REASONING_NAMES if name in given]
    if len(thoughts) > 1:
        raise Refused(f"{field}.{thoughts[1]}: given together with {thoughts[0]}; remove one")
    for name in thoughts:
        if thought := string_of(f"{field}.{name}", given[name]):
            plain[REASONING] = thought
    return plain | {name: string_of(f"{field}.{name}", given[name]) for name in _STRINGS if name in given}


def _role(field: str, message: dict[str, Any]) -> str:
    if "role" not in message:
        raise Refused(f"{field}.role: missing; add it")
    role = string_of(f"{field}.role", message["role"])
    if role not in ROLES:
        raise Refused(f"{field}.role: {role[:40]!r} is not known; use one of {', '.join(ROLES)}")
    return role


def _content(field: str, message: dict[str, Any]) -> str:
    """A string; text parts, as OpenAI's API also takes them, are put together."""
    if "content" not in message:
        raise Refused(f"{field}.content: missing; add it")
    content = message["content"]
    if not isinstance(content, list):
        return string_of(f"{field}.content", content)
    texts = []
    for index, part in enumerate(content):
        place = f"{field}.content[{index}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            raise Refused(f"{place}: is no text; write a string, or an object with the type 'text' and `text`")
        texts.append(string_of(f"{place}.text", part.get("text")))
    return "".join(texts)


def _calls(field: str, value: Any) -> list[dict[str, Any]]:
    """OpenAI has arguments as a string of JSON, which many chat templates would write as JSON a second time."""
    calls = []
    for index, call in enumerate(objects_of(field, value)):
        place = f"{field}[{index}].function"
        function = object_of(place, call.get("function"))
        arguments = object_of(f"{place}.arguments", function.get("arguments"))
        name = string_of(f"{place}.name", function.get("name"))
        calls.append({**call, "type": "function", "function": {"name": name, "arguments": arguments}})
    return calls


def _is_trained(field: str, message: dict[str, Any], *, otherwise: bool) -> bool:
    is_assistant = bool(message["role"] == "assistant")
    loss = message.get("loss")
    if loss is None:
        return is_assistant and otherwise
    if not isinstance(loss, bool):
        raise Refused(f"{field}.loss: is {kind_of(loss)}; write true or false")
    if loss and not is_assistant:
        raise Refused(f"{field}.loss: true for the role {message['role']!r}; only assistant turns can be trained")
    return loss
