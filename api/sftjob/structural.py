"""Translates pydantic's JSON schema of a model into a structural schema, as a CustomResourceDefinition needs it.

`crd.py` calls it. What has no translation raises, so that no check of pydantic is lost in silence.
"""

import inspect
from typing import Any

from pydantic import BaseModel

from sftjob.forms import LOCAL_ONLY, LOCAL_ONLY_REMEDY, REMEDIES
from sftjob.rules import Rule, text_in_cel

Schema = dict[str, Any]

_AS_IT_IS = ("type", "enum", "format", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
_BOUND = {"string": "maxLength", "array": "maxItems", "object": "maxProperties"}
_INT_OR_STRING = ["integer", "string"]


def spec_schema(model: type[BaseModel]) -> Schema:
    """Of what users write: defaults, bounds, rules, and a description for each field."""
    whole = model.model_json_schema()
    return _Translation(whole.pop("$defs")).schema(whole, "spec")


def status_schema(model: type[BaseModel]) -> Schema:
    """Of what the operator writes: types and descriptions only.

    The CRD of an older version must not refuse what a newer operator writes, and a default would look like a report.
    """
    whole = model.model_json_schema()
    return _lenient(_Translation(whole.pop("$defs"), bounded=False).schema(whole, "status"))


class _Translation:
    def __init__(self, definitions: dict[str, Schema], *, bounded: bool = True) -> None:
        self.definitions = definitions
        self.bounded = bounded

    def schema(self, given: Schema, path: str) -> Schema:
        """Takes out of a copy of `given` what it translates; what is left then is unknown."""
        left = self._resolved(given)
        if "anyOf" in left:
            arms = left.pop("anyOf")
            return self._int_or_string(left, arms, path)
        left.pop("title", None)
        made: Schema = {key: left.pop(key) for key in _AS_IT_IS if key in left}
        if "const" in left:
            made["enum"] = [left.pop("const")]
        for bound in ("Minimum", "Maximum"):
            if f"exclusive{bound}" in left:
                made |= {bound.lower(): left.pop(f"exclusive{bound}"), f"exclusive{bound}": True}
        rules = left.pop("x-kubernetes-validations", [])
        if "pattern" in left:
            rules += _form_rules(left.pop("pattern"))
        match made.get("type"):
            case "object" if "properties" in left:
                made |= self._properties(left, path)
            case "object":
                made["additionalProperties"], keys = self._map(left, path)
                made |= {"maxProperties": left.pop("maxProperties")} if "maxProperties" in left else {}
                rules += keys
            case "array":
                made["items"] = self.schema(_one_item(left, path), f"{path}[]")
        self._demand_bound(made, path)
        return self._finished(made, left, rules, path)

    def _finished(self, made: Schema, left: Schema, rules: list[Schema], path: str) -> Schema:
        if "description" in left:
            made["description"] = inspect.cleandoc(left.pop("description"))
        default = left.pop("default", None)
        if default is not None:
            made["default"] = {} if "properties" in made else default
        if rules:
            made["x-kubernetes-validations"] = rules
        if left:
            raise NotImplementedError(f"{path}: {sorted(left)} has no translation into a structural schema")
        return made

    def _resolved(self, given: Schema) -> Schema:
        """With its definition in place of a reference, and without `| None`: absent is all that null can mean."""
        left = dict(given)
        if "$ref" in left:
            definition = self.definitions[left.pop("$ref").rpartition("/")[2]]
            return self._resolved(definition | left)
        arms = [arm for arm in left.get("anyOf", []) if arm != {"type": "null"}]
        if len(arms) == 1:
            del left["anyOf"]
            return self._resolved(arms[0] | left)
        return left | ({"anyOf": arms} if arms else {})

    def _properties(self, left: Schema, path: str) -> Schema:
        if left.pop("additionalProperties", True) is True and self.bounded:
            raise NotImplementedError(f"{path}: accepts unknown fields; the API server drops them")
        properties = left.pop("properties")
        if (default := left.get("default")) is not None and default != {
            name: part.get("default") for name, part in properties.items()
        }:
            raise NotImplementedError(f"{path}: its default is not its fields' defaults")
        required = left.pop("required", [])
        return {
            "properties": {name: self.schema(part, f"{path}.{name}") for name, part in properties.items()},
        } | ({"required": required} if required else {})

    def _map(self, left: Schema, path: str) -> tuple[Schema, list[Schema]]:
        """Of the values, and rules for the keys."""
        names = left.pop("propertyNames", {})
        if "patternProperties" in left:
            ((pattern, values),) = left.pop("patternProperties").items()
        else:
            pattern, values = names.get("pattern"), left.pop("additionalProperties")
        rules = []
        if "maxLength" in names:
            longest = names["maxLength"]
            rules.append(_rule(_keys_rule(f"k.size() <= {longest}", "too long", f"use at most {longest} characters")))
        if pattern:
            rules.append(_rule(_keys_rule(_matches("k", pattern), "of the wrong form", REMEDIES[pattern])))
        return self.schema(values, f"{path}[*]"), rules

    def _int_or_string(self, left: Schema, arms: list[Schema], path: str) -> Schema:
        if [arm.get("type") for arm in arms] != _INT_OR_STRING:
            raise NotImplementedError(f"{path}: of several types only integer or string has a translation")
        number, text = (self.schema(arm, path) for arm in arms)
        left.pop("title", None)
        made: Schema = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": kind} for kind in _INT_OR_STRING]}
        rules = [
            rule | {"rule": f"type(self) == int || {rule['rule']}"} for rule in text.pop("x-kubernetes-validations", [])
        ]
        return self._finished(made | {"minimum": number["minimum"], "maxLength": text["maxLength"]}, left, rules, path)

    def _demand_bound(self, made: Schema, path: str) -> None:
        """Without bounds the API server refuses rules for what they might cost."""
        bound = _BOUND.get(made.get("type", ""))
        closed = "properties" in made or "enum" in made
        if self.bounded and bound and bound not in made and not closed:
            raise NotImplementedError(f"{path}: no {bound}")


def _one_item(left: Schema, path: str) -> Schema:
    """A tuple is a list whose items are all of one form."""
    if "prefixItems" not in left:
        item: Schema = left.pop("items")
        return item
    first, *others = left.pop("prefixItems")
    if any(other != first for other in others):
        raise NotImplementedError(f"{path}: a tuple of several forms")
    return dict(first)


def _form_rules(pattern: str) -> list[Schema]:
    """As rules, for `pattern` would answer with the pattern itself."""
    form = Rule(
        "", _matches("self", pattern), f"'{{value}}' has the wrong form; {REMEDIES[pattern]}", {"value": "self"}
    )
    if pattern not in LOCAL_ONLY:
        return [_rule(form)]
    local = Rule("", "!self.startsWith('file://')", f"'{{value}}' {LOCAL_ONLY_REMEDY}", {"value": "self"})
    return [_rule(form), _rule(local)]


def _keys_rule(holds: str, fault: str, remedy: str) -> Rule:
    first = f"self.filter(k, !({holds}))[0]"
    return Rule("", f"self.all(k, {holds})", f"the name '{{key}}' is {fault}; {remedy}", {"key": first})


def _matches(value: str, pattern: str) -> str:
    return f"{value}.matches({text_in_cel(pattern)})"


def _rule(rule: Rule) -> Schema:
    return rule.validation()


def _lenient(schema: Schema) -> Schema:
    made: Schema = {key: schema[key] for key in ("type", "format", "description") if key in schema}
    if "enum" in schema:
        known = f"One of {', '.join(schema['enum'])}."
        made["description"] = f"{made['description']} {known}" if "description" in made else known
    if "properties" in schema:
        made["properties"] = {name: _lenient(part) for name, part in schema["properties"].items()}
    if "items" in schema:
        made["items"] = _lenient(schema["items"])
    return made
