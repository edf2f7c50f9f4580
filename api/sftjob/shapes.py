"""What the type of a declared field looks like to a user. For the reference page, and for flags of the command line."""

import types
import typing
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel


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
