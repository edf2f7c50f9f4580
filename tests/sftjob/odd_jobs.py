"""Odd and broken SFTJobs by number: the same number is the same job, so that one that finds something can be had again.

They are made from good ones by changes that the schema tells the places of: fields set to what fits, just does not fit
or is of another kind, taken away, repeated, or unknown.
"""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from sftjob.crd import crd
from tests.sftjob.bad_manifests import GOOD, LEAST, SCRIPT

Path = tuple[str, ...]
ITEM = "[]"
MOST_CHARACTERS = 300_000

NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, 1e-320, 3.0)
TEXTS = (
    *("", " ", "null", "true", "0x10", "1_000", "1e3", "NaN", "a" * 64, "a" * 254, "a" * 5000, "-", ".", "..", "a..b"),
    *("ü€😀", "\u202eabc", "a\nb", "\ttab", "\x00", "\x7f", "$(HOME)", "$$", "{{ .x }}", "%s%d", "'; --", "\\", '"'),
    *("１２", "a/b/c", "A", "x" * 100_000),
)
URIS = (
    *("pvc://", "pvc:///x", "pvc://a", "pvc://a/", "pvc://a/../b", "pvc://a/./b", "pvc://a/b/..", "pvc://a//b"),
    *("pvc://A/b", "pvc://a b/c", "pvc://-a/b", "pvc://a./b", "pvc://a..b/c", "PVC://a/b", "pvc://a/%2e%2e/b"),
    *("pvc://a/b?c#d", "pvc://a/ü/b", "pvc://a/b\nc", "pvc://" + "a" * 254 + "/b", "pvc://a/" + "b/" * 300),
    *("file:///etc/passwd", "file://host/a", "file:///a/../b", "s3://bucket/a", "https://a/b", "gs://a/b", "/a/b", "a"),
    *("hf://", "hf://a", "hf://a/b", "hf://a/b/c", "hf://datasets/a/b/c.jsonl", "hf://datasets/a", "hf://../b"),
    *("configMap://a/b", "configMap://a", "configMap://a/b/c", "configMap://A/b", "configMap://a/..", "configMap:///b"),
)
COLLECTIONS: tuple[Any, ...] = ([], {}, [[]], [{}], [None], {"a": {}}, {"": 1}, {"a": None}, {"ü": "é"}, [1, "a", {}])
QUANTITIES = ("-1", "1.5.5", "1Ki", "0", "1e3", "100000000000E", "0.0000001", "1 Gi", "٣")


def odd_job(number: int) -> dict[str, Any]:
    """As a user would send it. Its name is its number's."""
    chance = random.Random(number)
    document = deepcopy(chance.choice((GOOD, LEAST, LEAST, SCRIPT)))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 8))):
        chance.choice((_set, _set, _set, _set, _take_away, _repeat, _add_unknown, _annotate))(document, chance)
    if isinstance(document.get("metadata"), dict):
        document["metadata"]["name"] = f"odd-{number}"
    return document


def _schemas(schema: dict[str, Any], path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from _schemas(part, (*path, name))
    if "items" in schema:
        yield from _schemas(schema["items"], (*path, ITEM))
    if "additionalProperties" in schema:
        yield from _schemas(schema["additionalProperties"], (*path, "cpu"))


PLACES = list(_schemas(crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], ("spec",)))


def _set(document: dict[str, Any], chance: random.Random) -> None:
    path, schema = chance.choice(PLACES)
    _put(document, path, _value(schema, path, chance))


def _value(schema: dict[str, Any], path: Path, chance: random.Random) -> Any:
    if chance.random() < 0.3:
        return deepcopy(chance.choice((*NUMBERS, *TEXTS, *COLLECTIONS, *URIS, None, True, _deep(100))))
    if path[-1] in ("uri", "storage"):
        return chance.choice(URIS)
    if "enum" in schema:
        return chance.choice((*schema["enum"], schema["enum"][0].upper(), "other", ""))
    match schema.get("type"):
        case "integer" | "number":
            bounds = [schema[bound] for bound in ("minimum", "maximum") if bound in schema]
            near = [bound + by for bound in bounds for by in (-1, 0, 1)]
            return chance.choice((*near, *near, *NUMBERS))
        case "string":
            longest = schema.get("maxLength", 64)
            return chance.choice((*TEXTS, "a" * longest, "a" * (longest + 1)))
        case "boolean":
            return chance.choice((True, False, "true", 1, None))
        case "array":
            longest = schema["maxItems"]
            return chance.choice(([], [None], [{}] * (longest + 1), ["a"] * longest, "a", {}))
        case "object":
            if "additionalProperties" in schema:
                keys = chance.choice((("cpu",), ("nvidia.com/gpu",), ("",), ("a b",), ("ü",), ("a" * 400,)))
                keys = keys if chance.random() < 0.9 else tuple(f"k{n}" for n in range(schema["maxProperties"] + 1))
                return {key: chance.choice((*QUANTITIES, *NUMBERS[:7], "a", None)) for key in keys}
            return deepcopy(chance.choice(COLLECTIONS))
        case _:
            return chance.choice((*QUANTITIES, *NUMBERS))


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


def _put(document: dict[str, Any], path: Path, value: Any) -> None:
    """Makes what the path leads through; where something else stands there, that stays."""
    at: Any = document
    for part, following in zip(path, (*path[1:], None), strict=True):
        if part == ITEM:
            if not isinstance(at, list):
                return
            if not at:
                at.append(None)
            key: Any = 0
        elif isinstance(at, dict):
            key = part
        else:
            return
        if following is None:
            at[key] = value
            return
        empty: Any = [] if following == ITEM else {}
        if part == ITEM and at[key] is None:
            at[key] = empty
        at = at[key] if part == ITEM else at.setdefault(key, empty)


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _nodes(value[key])


def _take_away(document: dict[str, Any], chance: random.Random) -> None:
    # Without kind or version the API server has nothing to look at.
    found = [(at, key) for at, key in _nodes(document) if key not in ("apiVersion", "kind", "metadata", "name")]
    if found:
        at, key = chance.choice(found)
        del at[key]


def _repeat(document: dict[str, Any], chance: random.Random) -> None:
    lists = [at[key] for at, key in _nodes(document) if isinstance(at[key], list) and at[key]]
    if lists:
        found = chance.choice(lists)
        # An API server names no field of what is too large to be read at all.
        most = MOST_CHARACTERS // len(json.dumps(found[0]))
        found += [deepcopy(found[0]) for _ in range(min(most, chance.choice((1, 7, 32, 64, 500))))]


def _add_unknown(document: dict[str, Any], chance: random.Random) -> None:
    found = [at for at, key in _nodes(document.get("spec", {})) if isinstance(at, dict)]
    if found:
        chance.choice(found)[chance.choice(("unknown", "Model", "loadfrom", "", "ü", "a.b"))] = chance.choice(
            (1, "a", {})
        )


def _annotate(document: dict[str, Any], chance: random.Random) -> None:
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        retry = chance.choice(("1", "", "x" * 1000, "ü" * 100, "a\nb"))
        metadata["annotations"] = {"sftjob.dev/retry": retry, "note": "n" * chance.choice((1, 30_000))}
