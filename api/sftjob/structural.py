"""Translates pydantic's JSON schema of a model into a structural schema, as a CustomResourceDefinition needs it.

`crd.py` calls it. What has no translation raises, so that no check of pydantic is lost in silence.
"""

import json
from typing import Any

from pydantic import BaseModel

from sftjob.forms import LOCAL_ONLY, LOCAL_ONLY_REMEDY, REMEDIES
from sftjob.rules import Rule, text_in_cel

Schema = dict[str, Any]

_SAME = ("type", "enum", "format", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
_BOUND = {"string": "maxLength", "array": "maxItems", "object": "maxProperties"}
PRESERVE = "x-kubernetes-preserve-unknown-fields"
"""Holds for the one level that it stands at."""
_INTEGER_OR_STRING = ["integer", "string"]


def spec_schema(model: type[BaseModel]) -> Schema:
    """Of what users write: defaults, bounds, rules, and a description of every field."""
    whole = model.model_json_schema()
    schema = _Translation(whole.pop("$defs")).schema(whole, "spec")
    _demand_bounds_and_descriptions(schema, "spec")
    _describe_defaults(schema)
    return schema


def status_schema(model: type[BaseModel]) -> Schema:
    """Of what the operator writes: types and descriptions only.

    The CRD of an older version must neither refuse nor drop what a newer operator writes, and a default would look like
    a report.
    """
    whole = model.model_json_schema()
    return _lenient(_Translation(whole.pop("$defs")).schema(whole, "status"), "status")


class _Translation:
    """Each method takes what it translates out of `left`; what is still there in the end has no translation."""

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self.definitions = definitions

    def schema(self, given: Schema, path: str) -> Schema:
        left = self._resolved(given)
        left.pop("title", None)
        made: Schema = {key: left.pop(key) for key in _SAME if key in left}
        rules: list[Schema] = left.pop("x-kubernetes-validations", [])
        if "const" in left:
            made["enum"] = [left.pop("const")]
        for bound in ("minimum", "maximum"):
            if (exclusive := f"exclusive{bound.capitalize()}") in left:
                made |= {bound: left.pop(exclusive), exclusive: True}
        if "pattern" in left:
            rules = rules + _form_rules(left.pop("pattern"))
        if "anyOf" in left:
            made, rules = self._integer_or_string(left.pop("anyOf"), path)
        elif "properties" in left:
            made |= self._object(left, path)
        elif made["type"] == "object":
            values, rules = self._map(left, path)
            made |= values
        elif made["type"] == "array":
            made["items"] = self.schema(_item(left, path), f"{path}[]")
        if "description" in left:
            made["description"] = " ".join(left.pop("description").split())
        if (default := left.pop("default", None)) is not None:
            made["default"] = {} if "properties" in made else default
        if rules:
            made["x-kubernetes-validations"] = rules
        if left:
            raise NotImplementedError(f"{path}: {sorted(left)} has no translation into a structural schema")
        return made

    def _resolved(self, given: Schema) -> Schema:
        """With its definition in place of a reference, and without `| None`: null in a file is the same as absent."""
        left = dict(given)
        if "$ref" in left:
            definition = self.definitions[left.pop("$ref").rpartition("/")[2]]
            return self._resolved(definition | left)
        if "anyOf" in left:
            arms = [arm for arm in left.pop("anyOf") if arm != {"type": "null"}]
            return self._resolved(arms[0] | left) if len(arms) == 1 else left | {"anyOf": arms}
        return left

    def _object(self, left: Schema, path: str) -> Schema:
        properties: dict[str, Schema] = left.pop("properties")
        left.pop("additionalProperties", None)  # False for users' files; the API server knows no other way
        defaults = {name: part.get("default") for name, part in properties.items()}
        if left.get("default") not in (None, defaults):
            raise NotImplementedError(f"{path}: its default differs from its fields' defaults")
        made: Schema = {"required": left.pop("required")} if "required" in left else {}
        made["properties"] = {name: self.schema(part, f"{path}.{name}") for name, part in properties.items()}
        return made

    def _map(self, left: Schema, path: str) -> tuple[Schema, list[Schema]]:
        """A structural schema has no word for keys: what they must be is said by rules."""
        ((pattern, values),) = left.pop("patternProperties").items()
        longest = left.pop("propertyNames")["maxLength"]
        made = {"maxProperties": left.pop("maxProperties"), "additionalProperties": self.schema(values, f"{path}[*]")}
        rules = [
            _keys_rule(f"key.size() <= {longest}", "is too long", f"use at most {longest} characters"),
            _keys_rule(_matches("key", pattern), "has the wrong form", REMEDIES[pattern]),
        ]
        return made, rules

    def _integer_or_string(self, arms: list[Schema], path: str) -> tuple[Schema, list[Schema]]:
        """Bounds of numbers leave strings alone and the other way round; a rule would not."""
        if [arm.get("type") for arm in arms] != _INTEGER_OR_STRING:
            raise NotImplementedError(f"{path}: of unions only `int | str` has a translation")
        number, text = (self.schema(arm, path) for arm in arms)
        rules = [
            rule | {"rule": f"type(self) == int || {rule['rule']}"} for rule in text.pop("x-kubernetes-validations", [])
        ]
        made = (
            number
            | text
            | {"x-kubernetes-int-or-string": True, "anyOf": [{"type": kind} for kind in _INTEGER_OR_STRING]}
        )
        del made["type"]
        return made, rules


def _item(left: Schema, path: str) -> Schema:
    """Of a list, or of a tuple whose parts are all of one form."""
    if "prefixItems" not in left:
        return dict(left.pop("items"))
    first, *others = left.pop("prefixItems")
    if any(other != first for other in others):
        raise NotImplementedError(f"{path}: a tuple of several forms has no translation")
    return dict(first)


def _form_rules(pattern: str) -> list[Schema]:
    """As rules, because `pattern` would answer with the pattern itself."""
    form = Rule(
        "", _matches("self", pattern), f"'{{value}}' has the wrong form; {REMEDIES[pattern]}", {"value": "self"}
    )
    if pattern not in LOCAL_ONLY:
        return [form.validation()]
    local = Rule("", "!self.startsWith('file://')", f"'{{value}}' {LOCAL_ONLY_REMEDY}", {"value": "self"})
    return [form.validation(), local.validation()]


def _keys_rule(holds: str, fault: str, remedy: str) -> Schema:
    values = {"key": f"self.filter(key, !({holds}))[0]"}
    return Rule("", f"self.all(key, {holds})", f"the name '{{key}}' {fault}; {remedy}", values).validation()


def _matches(value: str, pattern: str) -> str:
    return f"{value}.matches({text_in_cel(pattern)})"


def _demand_bounds_and_descriptions(schema: Schema, path: str) -> None:
    """Without bounds the API server refuses rules for what they might cost."""
    bound = _BOUND.get(schema.get("type", ""))
    if bound and bound not in schema and "properties" not in schema and "enum" not in schema:
        raise NotImplementedError(f"{path}: no {bound}")
    for name, part in schema.get("properties", {}).items():
        if "description" not in part:
            raise NotImplementedError(f"{path}.{name}: no description")
        _demand_bounds_and_descriptions(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            _demand_bounds_and_descriptions(schema[key], f"{path}[]")


def _describe_defaults(schema: Schema) -> None:
    """`kubectl explain` shows descriptions only."""
    for part in schema.get("properties", {}).values():
        if (default := part.get("default", {})) not in ({}, []):
            part["description"] += f" Default: {default if isinstance(default, str) else json.dumps(default)}."
        _describe_defaults(part.get("items", part))


def _lenient(schema: Schema, path: str) -> Schema:
    if "type" not in schema or "additionalProperties" in schema:
        raise NotImplementedError(f"{path}: in status neither unions nor maps have a translation")
    made: Schema = {key: schema[key] for key in ("type", "format", "description") if key in schema}
    if "enum" in schema:
        made["description"] = f"{made.get('description', '')} One of {', '.join(schema['enum'])}.".strip()
    if "properties" in schema:
        made["properties"] = {name: _lenient(part, f"{path}.{name}") for name, part in schema["properties"].items()}
        made[PRESERVE] = True
    if "items" in schema:
        made["items"] = _lenient(schema["items"], f"{path}[]")
    return made
