"""The flags of `sft train`: one for each value of a job's spec, from its declaration.

`flags()` names them, `spec_of` puts what was given into the spec that a file would hold. Values stay text: the
declaration reads them, and refuses with the same sentences as for a file. No flag has what only clusters heed, but for
what is a single value there, nor `compute.env`, which the shell's own variables are here.
"""

import copy
import inspect
import itertools
import json
import os
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
from rich.markup import escape

from sft_cli.refusal import Refusal
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
_LISTS = {"data.datasets": "--data", "data.evaluation.datasets": "--eval-data", "output": "--output"}
"""Lists of what has a `uri`, by the flag that gives these, once for each. The other fields' flags begin with it."""
_MAPS = ("columns",)
"""Of their fields the maps that have a flag nevertheless."""
MAP_SHOWN = "FIELD=NAME,..."

_EITHER = {"training.totalEpoch": "training.totalStep", "training.totalStep": "training.totalEpoch"}
"""Flags that take another field of the file away: the job can't have both."""


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
    of: str | None = None
    """The path of the list, where it is a field of what is listed; it is given once for all of that, or for each."""

    @property
    def names(self) -> list[str]:
        """The short one first: help cuts what is too long."""
        return [*([self.short] if self.short else []), *([] if self.of else [f"--{self.path}"])]

    @property
    def is_several(self) -> bool:
        """It may be given again."""
        return self.is_list or self.of is not None

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
    ends = Counter(_last_word(flag.path) for flag in found if not flag.of)
    return [
        flag if flag.of else replace(flag, short=_PLACES.get(flag.path) or _short(flag.path, ends)) for flag in found
    ]


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """What typer reads of a command: each flag, as text, in place of its `**given`."""
    parameters = [
        inspect.Parameter(
            flag.parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                list[str] | None if flag.is_several else str | None,
                typer.Option(
                    *flag.names,
                    metavar=flag.shown,
                    help=escape(flag.meaning),
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


def spec_of(given: Mapping[str, str | list[str]], *, base: dict[str, Any]) -> dict[str, Any]:
    """`base` is a file's spec, or {}; `given` maps paths to values and wins. Nothing is checked yet.

    Raises Refusal where it is not clear of which dataset or output a value is.
    """
    spec = copy.deepcopy(base)
    for path, other in _EITHER.items():
        within, _, excluded = other.partition(".")
        if path in given and isinstance(spec.get(within), dict):
            spec[within].pop(excluded, None)
    of_lists: dict[str, dict[str, list[str]]] = {}
    for flag in flags():
        value = given.get(flag.path)
        if value is None:
            continue
        *sections, name = flag.path.split(".")
        if flag.of:
            assert isinstance(value, list)
            of_lists.setdefault(flag.of, {})[name] = value
        elif flag.is_list:
            _within(spec, sections)[name] = [item for one in value for item in _items_of(one, flag=flag)]
        else:
            assert isinstance(value, str)
            _within(spec, sections)[name] = place(value) if flag.path in _PLACES else value
    for path, fields in of_lists.items():
        *sections, name = path.split(".")
        section = _within(spec, sections)
        items = _items(fields, flag=_LISTS[path])
        section[name] = _of_outputs(items, section.get(name)) if path == "output" else _with_names(items)
    return spec


def _items_of(value: str, *, flag: Flag) -> list[str]:
    """Of `a,b`, or of `["a", "b,c"]`, for what holds a comma itself."""
    if not value.startswith("["):
        return value.split(",") if value else []
    try:
        items = json.loads(value)
    except ValueError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise Refusal(f'--{flag.path}: {value} is no list of words; write ["a", "b,c"], or a,b')
    return items


def map_of(value: str, *, flag: str) -> dict[str, str]:
    """Of `a=b,c=d`, or of `{"a": "b,c"}`, for what holds a comma itself."""
    if value.startswith("{"):
        try:
            found = json.loads(value)
        except ValueError:
            found = None
    else:
        pairs = [pair.partition("=") for pair in value.split(",") if pair]
        found = {name: other for name, _, other in pairs} if all(sign for _, sign, _ in pairs) else None
        if found and len(found) < len(pairs):
            raise Refusal(f"{flag}: {value} names a field twice; name each once")
    if not isinstance(found, dict) or not all(isinstance(other, str) for other in found.values()):
        raise Refusal(f'{flag}: {value} is no map; write instruction=question,output=answer, or {{"output": "a,b"}}')
    return found


def _items(fields: Mapping[str, list[str]], *, flag: str) -> list[dict[str, Any]]:
    """What `flag` and those that begin with it say of each thing that it lists."""
    uris = fields.get("uri", [])
    for field, values in fields.items():
        if not uris:
            raise Refusal(
                f"{_of_item(flag, field)}: given without {flag}, of which it tells; add it, or write the field "
                "into the file"
            )
        if len(values) not in (1, len(uris)):
            raise Refusal(
                f"{_of_item(flag, field)}: given {len(values)} times, for {len(uris)} of {flag}; give it once for all "
                "of them, or once for each"
            )
    return [
        {field: _value(values[n % len(values)], field, flag) for field, values in fields.items()} | {"uri": place(uri)}
        for n, uri in enumerate(uris)
    ]


def _value(text: str, field: str, flag: str) -> str | dict[str, str]:
    return map_of(text, flag=_of_item(flag, field)) if field in _MAPS else text


def _with_names(datasets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A dataset has to have one of its own."""
    taken = {one["name"] for one in datasets if "name" in one}
    named = []
    for number, one in enumerate(datasets):
        stem = label(Path(one["uri"]).stem, fallback=f"data-{number}")
        several = (f"{stem[:58]}-{count}" for count in itertools.count(2))
        name = one["name"] if "name" in one else next(n for n in itertools.chain([stem], several) if n not in taken)
        taken.add(name)
        named.append({"name": name} | one)
    return named


def _of_outputs(given: list[dict[str, Any]], base: Any) -> list[dict[str, Any]]:
    """Format and dtype that a file wants of an output stand, wherever it goes."""
    before = base if isinstance(base, list) else []
    kept = [before[n] if n < len(before) and isinstance(before[n], dict) else {} for n in range(len(given))]
    return [of_file | of_flags for of_file, of_flags in zip(kept, given, strict=True)]


def _within(spec: dict[str, Any], sections: list[str]) -> dict[str, Any]:
    for key in sections:
        spec = _section(spec, key)
    return spec


def _section(within: dict[str, Any], key: str) -> dict[str, Any]:
    """A flag replaces what is no section: a file may have its name with nothing behind it."""
    if not isinstance(within.get(key), dict):
        within[key] = {}
    section: dict[str, Any] = within[key]
    return section


def place(text: str) -> str:
    """A URI as it is, a path of this machine as one."""
    if re.match(r"[a-zA-Z0-9]+:/", text):
        return text
    # A URI has no `..`; and a home that nobody has stays as it is.
    return "file://" + os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111


def label(text: str, *, fallback: str) -> str:
    """What a name in a job may be, from any text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:63].strip("-") or fallback


def _flags(model: type[BaseModel], prefix: str) -> Iterator[Flag]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        if path in _WITHOUT_A_FLAG:
            continue
        shown, nested, is_list = shape(field.annotation)
        if nested and path in _LISTS:
            yield from _flags_of_items(nested, path)
        elif nested and not is_list:
            yield from _flags(nested, f"{path}.")
        elif not nested and (_last_word(path) in _MAPS or not shown.startswith("map of")):
            meaning = " ".join([*(field.description or "").split(), *(["Several: a,b, or again."] if is_list else [])])
            yield Flag(
                path, MAP_SHOWN if _last_word(path) in _MAPS else shown, meaning, _default(field), is_list=is_list
            )


def _flags_of_items(model: type[BaseModel], path: str) -> Iterator[Flag]:
    flag = _LISTS[path]
    for one in _flags(model, f"{path}."):
        field = _last_word(one.path)
        again = "Again for another one." if field == "uri" else f"Once for all of {flag}, or once for each."
        yield replace(one, of=path, short=_of_item(flag, field), meaning=f"{one.meaning} {again}")


def _of_item(flag: str, field: str) -> str:
    return flag if field == "uri" else f"{flag}-{_dashed(field)}"


def _default(field: FieldInfo) -> str | None:
    if field.default in (None, PydanticUndefined):
        return None
    return field.default if isinstance(field.default, str) else json.dumps(field.default).strip("[]").replace(" ", "")


def _last_word(path: str) -> str:
    return path.rpartition(".")[2]


def _short(path: str, ends: Counter[str]) -> str | None:
    word = _last_word(path)
    return f"--{_dashed(word)}" if ends[word] == 1 else None


def _dashed(word: str) -> str:
    return re.sub(r"([A-Z])", lambda match: f"-{match[1].lower()}", word)
