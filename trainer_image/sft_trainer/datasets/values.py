"""What a value of a row must be, and the sentence for one that is something else.

Called by `messages` and `formats`.
"""

import json
from collections.abc import Iterator
from typing import Any


class Refused(Exception):
    """A row can't be used: `<field>: <what>; <remedy>`."""


def kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def string_of(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Refused(f"{field}: is {kind_of(value)}; write a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refused(
            f"{field}: character {error.start + 1} is half of a surrogate pair; write the whole character"
        ) from None
    return value


def object_of(field: str, value: Any) -> dict[str, Any]:
    """An object, also where it is written as a string that holds its JSON."""
    found = _from_json(field, value)
    if not isinstance(found, dict):
        raise Refused(f"{field}: is {kind_of(found)}; write an object")
    for place, text in _strings(field, found):
        string_of(place, text)
    return found


def objects_of(field: str, value: Any) -> list[dict[str, Any]]:
    """A list of objects, also where it is written as a string that holds its JSON: columns of tables often are.

    The text `null` says that there are none, as pandas and json.dumps write it.
    """
    found = _from_json(field, value)
    if found is None and value is not None:
        return []
    if not isinstance(found, list):
        raise Refused(f"{field}: is {kind_of(found)}; write a list of objects")
    return [object_of(f"{field}[{index}]", item) for index, item in enumerate(found)]


def _strings(field: str, value: Any) -> Iterator[tuple[str, str]]:
    """Those within a value, names too, each with its place. Without recursion: a row may be nested deeply."""
    left = [(field, value)]
    while left:
        place, one = left.pop()
        if isinstance(one, str):
            yield place, one
        elif isinstance(one, list):
            left += [(f"{place}[{index}]", item) for index, item in enumerate(one)]
        elif isinstance(one, dict):
            for name, item in one.items():
                yield f"{place}, the name of a field", name
                left.append((f"{place}.{name}", item))


def _from_json(field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{field}: is a string that holds no JSON, {error}; write the value itself") from None
