"""Turns pydantic's validation errors into sentences with path, value and remedy."""

import difflib
import itertools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sftjob.forms import REMEDIES


@dataclass(frozen=True)
class Problem:
    path: str
    """`spec.data.datasets[0].uri`"""
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; {self.remedy}"


class SpecError(ValueError):
    """A user's file or arguments, refused: all problems, in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every problem. Where a field of a model is wrong, pydantic skips the checks across that model's fields."""
    problems = []
    for details in _of_unions_one(error.errors()):
        if details["type"] == "value_error":
            problems += _own_problems(details)
        else:
            problems.append(_field_problem(details, model))
    return problems


def _of_unions_one(errors: list[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Of `int | str` pydantic tells for each arm why the value is not of it: the arm of the value's type counts."""
    for (at, is_union), group in itertools.groupby(errors, key=_place_and_whether_union):
        told = list(group)
        if is_union:
            told = [details for details in told if not _is_of_another_type(details)] or told[-1:]
        yield from (details | {"loc": at} for details in told)


def _place_and_whether_union(details: ErrorDetails) -> tuple[tuple[int | str, ...], bool]:
    location = details["loc"]
    return (location[:-1], True) if location[-1:] in (("constrained-int",), ("constrained-str",)) else (location, False)


def _is_of_another_type(details: ErrorDetails) -> bool:
    return details["type"].endswith(("_type", "_parsing", "_from_float"))


def _own_problems(details: ErrorDetails) -> list[Problem]:
    """Our checks across fields write a line per problem: the field they blame, then `: value; remedy`.

    A check that stands at the field itself blames it too.
    """
    parent = _join(details["loc"])
    problems = []
    for line in str(details["ctx"]["error"]).splitlines():
        field, _, rest = line.partition(": ")
        found, _, remedy = rest.partition("; ")
        at = parent if details["loc"][-1:] == (field,) else f"{parent}.{field}" if parent else field
        problems.append(Problem(at, found, remedy))
    return problems


def _field_problem(details: ErrorDetails, model: type[BaseModel]) -> Problem:
    location, value, context = details["loc"], details["input"], details.get("ctx", {})
    path, shown = _join(location), _shown(value)
    if location[-1] == "[key]":
        path, shown = _join(location[:-2]), f"the name {shown}"
    match details["type"]:
        case "missing":
            return Problem(path, "missing", "this field is required, add it")
        case "extra_forbidden":
            known = _fields_at(model, location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            return Problem(path, "unknown field", remedy)
        case "literal_error" | "enum":
            return Problem(path, f"{shown} is not allowed", f"use {context['expected']}")
        case "string_pattern_mismatch":
            return Problem(path, f"{shown} has the wrong form", REMEDIES[str(context["pattern"])])
        case "string_too_long":
            return Problem(path, f"{shown} is too long", f"use at most {context['max_length']} characters")
        case "too_short":
            return Problem(path, "too few are given", f"give at least {context['min_length']}")
        case "too_long":
            return Problem(path, "too many are given", f"give at most {context['max_length']}")
        case "model_type" | "dict_type":
            return Problem(path, f"{shown} has the wrong type", "write its fields as `name: value`")
        case kind if kind.endswith(("_type", "_parsing")):
            return Problem(path, f"{shown} has the wrong type", _use(details))
        case _:
            return Problem(path, f"{shown} is not allowed", _use(details))


def _use(details: ErrorDetails) -> str:
    wanted = details["msg"].removeprefix("Input should be ")
    return f"use {wanted}" if wanted.startswith("a ") else f"use a value {wanted}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names that may stand at this place, as a file spells them."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            current = typing.get_args(current)[0]
            continue
        field = next(f for n, f in current.model_fields.items() if part in (f.alias, n))
        current = field.annotation
        if isinstance(current, types.UnionType):
            current = next(arm for arm in typing.get_args(current) if arm is not type(None))
    return [field.alias or name for name, field in current.model_fields.items()]
