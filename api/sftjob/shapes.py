"""What the type of a declared field looks like to a user. For the reference page, and for flags of the command line."""

import types
import typing
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def shape(annotation: Any) -> tuple[str, type[BaseModel] | None, bool]:
    """How a field's type is shown, the model inside of it, and whether it is a list."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return shape(arguments[0])
    if origin in (types.UnionType, typing.Union):
        arms = [shape(arm) for arm in arguments if arm is not type(None)]
        return " or ".join(shown for shown, _, _ in arms), *arms[0][1:]
    if origin is Literal:
        return " | ".join(str(value) for value in arguments), None, False
    if origin is dict:
        return f"map of {shape(arguments[1])[0]}", None, False
    if origin in (list, tuple):
        shown, nested, _ = shape(arguments[0])
        return f"list of {shown}", nested, True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object", annotation, False
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " | ".join(annotation), None, False
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names.get(annotation, "string"), None, False


def bounds(field: FieldInfo) -> str:
    """Of its numbers, in words; empty where it has none."""
    named = typing.get_args(field.annotation)[1:] if typing.get_origin(field.annotation) is Annotated else ()
    known = {
        name: getattr(bound, name)
        for part in (*named, field)
        for bound in part.metadata
        for name in ("gt", "ge", "lt", "le")
        if hasattr(bound, name)
    }
    if known.keys() == {"ge", "le"}:
        return f"{known['ge']} to {known['le']}"
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return ", ".join(f"{words[name]} {bound}" for name, bound in known.items())
