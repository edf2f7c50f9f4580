"""The generated CRD holds every check of pydantic; `tests/cluster/test_definition.py` tries it on an API server."""

import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import annotated_types
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, StringConstraints

from sftjob.base import Declared
from sftjob.crd import crd
from sftjob.forms import LABEL
from sftjob.spec import SFTJobSpec
from sftjob.structural import spec_schema
from sftjob.yaml_text import yaml_text
from tests.sftjob.bad_manifests import BAD, ON_ONE_MACHINE

SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def bounds_of(annotation: Any, metadata: list[Any], path: str) -> Iterator[tuple[str, str, Any]]:
    """Path, key and value of each bound that the schema must have, from the declaration itself."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from bounds_of(arguments[0], [*metadata, *arguments[1:]], path)
        return
    if origin in (types.UnionType, typing.Union):
        for arm in set(arguments) - {type(None)}:
            yield from bounds_of(arm, metadata, path)
        return
    if origin is Literal:
        yield path, "enum", list(arguments)
    length = {list: "Items", dict: "Properties"}.get(origin or annotation, "Length")
    for constraint in (part for one in metadata for part in getattr(one, "metadata", [one])):
        match constraint:
            case annotated_types.Ge(ge=least):
                yield path, "minimum", least
            case annotated_types.Gt(gt=least):
                yield from ((path, "minimum", least), (path, "exclusiveMinimum", True))
            case annotated_types.Le(le=most):
                yield path, "maximum", most
            case annotated_types.Lt(lt=most):
                yield from ((path, "maximum", most), (path, "exclusiveMaximum", True))
            case annotated_types.MinLen(min_length=least):
                yield path, f"min{length}", least
            case annotated_types.MaxLen(max_length=most) | StringConstraints(max_length=int(most)):
                yield path, f"max{length}", most
            case _ if getattr(constraint, "pattern", None):
                pass
            case _:
                raise AssertionError(f"{path}: {constraint} is not looked at here")
    if origin is dict:
        yield from bounds_of(arguments[1], [], f"{path}.*")
    if origin in (list, tuple):
        yield from bounds_of(arguments[0], [], f"{path}[]")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield from bounds_of(field.annotation, field.metadata, f"{path}.{field.alias or name}")


def schemas(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from schemas(part, f"{path}.{name}")
    if "items" in schema:
        yield from schemas(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from schemas(schema["additionalProperties"], f"{path}.*")


BOUNDS = list(bounds_of(SFTJobSpec, [], "spec"))


def test_every_bound_of_pydantic_stands_in_the_schema() -> None:
    found = dict(schemas(SCHEMA["properties"]["spec"], "spec"))
    assert len(BOUNDS) > 80
    assert [bound for bound in BOUNDS if found[bound[0]].get(bound[1]) != bound[2]] == []


def test_no_bound_stands_in_the_schema_alone() -> None:
    """What a cluster refuses, `sft run` refuses too."""
    keys = {key for _, key, _ in BOUNDS}
    alone = [
        (path, key, schema[key])
        for path, schema in schemas(SCHEMA["properties"]["spec"], "spec")
        for key in keys & schema.keys()
        if (path, key, schema[key]) not in BOUNDS and not path.endswith("betas")
    ]
    assert alone == []


def test_every_rule_is_broken_by_a_bad_manifest() -> None:
    said = [(_place(bad.path), bad.server or bad.says) for bad in [*BAD, *ON_ONE_MACHINE]]
    untried = [
        (path, rule["message"])
        for path, schema in schemas(SCHEMA["properties"]["spec"], "spec")
        for rule in schema.get("x-kubernetes-validations", [])
        if rule["reason"] != "FieldValueForbidden"
        and not any(_is_of(rule, says) for place, says in said if place == path + rule.get("fieldPath", ""))
    ]
    assert untried == []


def _place(path: str) -> str:
    """As in a schema: any item of a list, any key of a map."""
    return re.sub(r"(requests|limits|nodeSelector|columns)\.\w+", r"\1.*", re.sub(r"\[\d+\]", "[]", path))


def _is_of(rule: dict[str, Any], says: str) -> bool:
    return bool(re.fullmatch(re.escape(rule["message"]).replace(r"\.\.\.", ".*"), says))


def test_only_the_run_policy_is_mutable() -> None:
    rules = SCHEMA["properties"]["spec"]["x-kubernetes-validations"]
    immutable = {rule["fieldPath"] for rule in rules if rule["reason"] == "FieldValueForbidden"}
    assert immutable == {".script", ".model", ".data", ".training", ".checkpoint", ".output", ".compute", ".queue"}


def test_status_refuses_nothing_but_other_types() -> None:
    """An older CRD stores what a newer operator writes, and shows no status that nobody wrote."""
    keys = {key for _, schema in schemas(SCHEMA["properties"]["status"], "status") for key in schema}
    assert keys == {"type", "format", "description", "properties", "items", "x-kubernetes-preserve-unknown-fields"}


def test_no_level_of_the_status_drops_what_a_newer_operator_writes() -> None:
    objects = [found for found in schemas(SCHEMA["properties"]["status"], "status") if found[1]["type"] == "object"]
    assert [path for path, schema in objects if schema.get("x-kubernetes-preserve-unknown-fields") is not True] == []


class Unbounded(Declared):
    name: str
    """A name."""


class Union(Declared):
    name: bool | Annotated[str, Field(max_length=3)]
    """A name."""


class Multiple(Declared):
    number: int = Field(multiple_of=2, description="A number.")


class Undescribed(Declared):
    number: int


class UnboundedList(Declared):
    names: list[Annotated[str, Field(max_length=3)]]
    """Names."""


class Pair(Declared):
    pair: tuple[int, bool]
    """Of two forms."""


class OtherDefault(Declared):
    inner: Multiple = Multiple(number=4)
    """Its default is not its fields' own."""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Unbounded, "spec.inner.name: no maxLength"),
        (UnboundedList, "spec.inner.names: no maxItems"),
        (Undescribed, "spec.inner.number: no description"),
        (Union, "spec.inner.name: of unions only"),
        (Multiple, r"spec.inner.number: \['multipleOf'\] has no translation"),
        (Pair, "spec.inner.pair: a tuple of several forms"),
        (OtherDefault, "spec.inner.inner: its default differs from its fields' defaults"),
    ],
)
def test_what_a_schema_can_t_say_raises(model: type[BaseModel], said: str) -> None:
    class Outer(Declared):
        inner: model  # type: ignore[valid-type]
        """Whatever is tried."""

    with pytest.raises(NotImplementedError, match=said):
        spec_schema(Outer)


def test_a_string_with_a_form_becomes_a_rule_that_tells_value_and_remedy() -> None:
    class Inner(Declared):
        name: Annotated[str, StringConstraints(max_length=63, pattern=LABEL)]
        """A name."""

    class Outer(Declared):
        inner: Inner | None = None
        """Optional."""

    assert spec_schema(Outer)["properties"]["inner"] == {
        "type": "object",
        "description": "Optional.",
        "required": ["name"],
        "properties": {
            "name": {
                "type": "string",
                "description": "A name.",
                "maxLength": 63,
                "x-kubernetes-validations": [
                    {
                        "rule": "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                        "message": "'...' has the wrong form; "
                        "use lower-case letters, digits and dashes, with a letter or digit at both ends",
                        "messageExpression": "\"'%s' has the wrong form; use lower-case letters, digits and dashes, "
                        'with a letter or digit at both ends".format([self])',
                        "reason": "FieldValueInvalid",
                    }
                ],
            }
        },
    }


TEXTS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]) | st.sampled_from("ü… \\\"'\n"), max_size=200)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4))
def test_yaml_reads_back_as_what_was_written(value: dict[str, Any]) -> None:
    assert yaml.safe_load(yaml_text(value)) == value


def test_the_crd_s_yaml_is_the_crd() -> None:
    assert yaml.safe_load(yaml_text(crd())) == crd()
