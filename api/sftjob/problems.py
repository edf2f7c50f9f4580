"""Turns pydantic's validation errors into sentences with path, value and remedy."""

import difflib
import types
import typing
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
    for details in error.errors():
        if details["type"] == "value_error":
            problems += _own_problems(details)
        else:
            problems.append(_field_problem(details, model))
    return problems


def _own_problems(details: ErrorDetails) -> list[Problem]:
    """Our checks across fields write a line per problem: the field they blame, then `: value; remedy`."""
    parent = _join(details["loc"])
    problems = []
    for line in str(details["ctx"]["error"]).splitlines():
        field, _, rest = line.partition(": ")
        found, _, remedy = rest.partition("; ")
        problems.append(Problem(f"{parent}.{field}" if parent else field, found, remedy))
    return problems


def _field_problem(details: ErrorDetails, model: type[BaseModel]) -> Problem:
    location, value, context = details["loc"], details["input"], details.get("ctx", {})
    path = _join(location)
    match details["type"]:
        case "missing":
            return Problem(path, "missing", "this field is required, add it")
        case "extra_forbidden":
            known = _fields_at(model, location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            return Problem(path, "unknown field", remedy)
        case "literal_error" | "enum":
            return Problem(path, f"{_shown(value)} is not allowed", f"use {context['expected']}")
        case "string_pattern_mismatch":
            return Problem(path, f"{_shown(value)} has the wrong form", REMEDIES[str(context["pattern"])])
        case kind if kind.endswith(("_type", "_parsing")):
            return Problem(path, f"{_shown(value)} has the wrong type", _use(details, "use"))
        case _:
            return Problem(path, f"{_shown(value)} is not allowed", _use(details, "use a value"))


def _use(details: ErrorDetails, verb: str) -> str:
    return details["msg"].replace("Input should be", verb)


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
