"""Writes the reference page of the SFTJob resource from its declaration: `python -m sftjob.reference`."""

import json
import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sftjob.names import API_VERSION
from sftjob.spec import SFTJobSpec
from sftjob.status import SFTJobStatus

_HEADER = f"""# SFTJob

Generated from `api/sftjob` by `make generate`. `apiVersion: {API_VERSION}`, `kind: SFTJob`.
"""


def page() -> str:
    parts = [_HEADER]
    for title, model in (("spec", SFTJobSpec), ("status", SFTJobStatus)):
        parts.append(f"\n## {title}\n\n| Field | Type | Default | Meaning |\n|---|---|---|---|\n")
        parts += [f"| {' | '.join(cells)} |\n" for cells in _rows(model, title)]
    return "".join(parts)


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        path = f"{prefix}.{field.alias or name}"
        shown, nested, is_list = _type(field.annotation)
        if nested and is_list:
            path += "[]"
        text = " ".join((field.description or (nested and nested.__doc__) or "").split()).replace("|", "\\|")
        yield f"`{path}`", shown, _default(field), text
        if nested:
            yield from _rows(nested, path)


def _type(annotation: Any) -> tuple[str, type[BaseModel] | None, bool]:
    """How a type is shown, the model inside of it, and whether it is a list."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (types.UnionType, typing.Union):
        arms = [_type(arm) for arm in arguments if arm is not type(None)]
        return " or ".join(shown for shown, _, _ in arms), *arms[0][1:]
    if origin is Literal:
        return " \\| ".join(str(value) for value in arguments), None, False
    if origin is dict:
        return f"map of {_type(arguments[1])[0]}", None, False
    if origin in (list, tuple):
        shown, nested, _ = _type(arguments[0])
        return f"list of {shown}", nested, True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object", annotation, False
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " \\| ".join(annotation), None, False
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names.get(annotation, "string"), None, False


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default is PydanticUndefined or isinstance(field.default, BaseModel):
        return ""
    if field.default in ([], {}, ""):
        return ""
    return f"`{field.default if isinstance(field.default, str) else json.dumps(field.default)}`"


if __name__ == "__main__":
    print(page(), end="")
