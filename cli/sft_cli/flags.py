"""The flags of `sft train`: one for each single value of a job's spec, from its declaration.

`flags()` names them, `spec_of` puts what was given into the spec that a file would hold. Values stay text: the
declaration reads them, and refuses with the same sentences as for a file.
"""

import copy
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sftjob.shapes import shape
from sftjob.spec import SFTJobSpec

_WITHOUT_A_FLAG = ("compute.image", "compute.priorityClassName", "queue.name", "runPolicy.suspend")
"""Heeded by clusters only; and a run on this machine is wanted to run."""
_PLACES = {
    "script.uri": "--script",
    "model.loadFrom.uri": "--model",
    "model.tokenizer.uri": "--tokenizer",
    "checkpoint.storage": "--checkpoints",
}
"""Folders, with a name that is easier to remember."""


@dataclass(frozen=True)
class Flag:
    path: str
    """Below `spec`, as a file spells it: `training.optimizer.lr`."""
    shown: str
    """Its type, for people."""
    meaning: str
    default: str | None
    is_list: bool
    short: str | None = None

    @property
    def names(self) -> list[str]:
        """The short one first: help cuts what is too long."""
        return [*([self.short] if self.short else []), f"--{self.path}"]

    @property
    def parameter(self) -> str:
        """A Python name."""
        return self.path.replace(".", "_")

    @property
    def section(self) -> str:
        return self.path.partition(".")[0]


def flags() -> list[Flag]:
    """In the order of the declaration. The last word alone is a flag too, where no other path ends in it."""
    found = list(_flags(SFTJobSpec, ""))
    ends = Counter(_last_word(flag.path) for flag in found)
    return [replace(flag, short=_PLACES.get(flag.path) or _short(flag.path, ends)) for flag in found]


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """What typer reads of a command: each flag, as text, in place of its `**given`."""
    parameters = [
        inspect.Parameter(
            flag.parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    *flag.names,
                    metavar=flag.shown,
                    help=flag.meaning,
                    show_default=flag.default or False,
                    rich_help_panel=f"spec.{flag.section}",
                ),
            ],
        )
        for flag in flags()
    ]
    *own, _ = inspect.signature(command).parameters.values()
    command.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]  # PEP 362
    return command


def spec_of(
    given: Mapping[str, str],
    *,
    data: list[str],
    of_data: Mapping[str, str],
    output: str | None,
    base: dict[str, Any],
) -> dict[str, Any]:
    """`base` is a file's spec, or {}; `given` maps paths to values and wins, as `of_data` does of each of `data`.

    Nothing is checked yet.
    """
    spec = copy.deepcopy(base)
    lists = {flag.path for flag in flags() if flag.is_list}
    for path, value in given.items():
        *sections, name = path.split(".")
        section = spec
        for key in sections:
            section = _section(section, key)
        if path in lists:
            section[name] = value.split(",") if value else []
        else:
            section[name] = place(value) if path in _PLACES else value
    if data:
        _section(spec, "data")["datasets"] = [
            {"name": label(Path(file).stem, fallback=f"data-{n}"), "uri": place(file), **of_data}
            for n, file in enumerate(data)
        ]
    if output is not None:
        spec["output"] = [_first(spec.get("output")) | {"uri": place(output)}]
    return spec


def _first(outputs: Any) -> dict[str, Any]:
    """Format and dtype that a file wants of its output stand, wherever it goes."""
    return outputs[0] if isinstance(outputs, list) and outputs and isinstance(outputs[0], dict) else {}


def _section(within: dict[str, Any], key: str) -> dict[str, Any]:
    """A flag replaces what is no section: a file may have its name with nothing behind it."""
    if not isinstance(within.get(key), dict):
        within[key] = {}
    section: dict[str, Any] = within[key]
    return section


def place(text: str) -> str:
    """A URI as it is, a path of this machine as one."""
    return text if re.match(r"[a-zA-Z0-9]+:/", text) else f"file://{Path(text).absolute()}"


def label(text: str, *, fallback: str) -> str:
    """What a name in a job may be, from any text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:63].strip("-") or fallback


def _flags(model: type[BaseModel], prefix: str) -> Iterator[Flag]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        if path in _WITHOUT_A_FLAG:
            continue
        shown, nested, is_list = shape(field.annotation)
        if nested and not is_list:
            yield from _flags(nested, f"{path}.")
        elif not nested and not shown.startswith("map of"):
            meaning = " ".join((field.description or "").split())
            yield Flag(path, shown, meaning, _default(field), is_list=is_list)


def _default(field: FieldInfo) -> str | None:
    if field.default in (None, PydanticUndefined):
        return None
    return field.default if isinstance(field.default, str) else json.dumps(field.default).strip("[]").replace(" ", "")


def _last_word(path: str) -> str:
    return path.rpartition(".")[2]


def _short(path: str, ends: Counter[str]) -> str | None:
    word = _last_word(path)
    return "--" + re.sub(r"([A-Z])", lambda match: f"-{match[1].lower()}", word) if ends[word] == 1 else None
