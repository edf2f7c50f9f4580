"""Writes a JSON value as YAML for people to read, in the part of YAML that every parser reads alike."""

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

_PLAIN = re.compile(r"\.?[A-Za-z][A-Za-z0-9./-]*")
_NOT_TEXT = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", ".inf", ".nan"}
_WIDTH = 110


def yaml_text(value: dict[str, Any]) -> str:
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    """Of a mapping or a list that is not empty."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _entry(f"{_scalar(key)}:", part)
        return
    for part in value:
        if isinstance(part, dict) and part:
            first, *others = _lines(part)
            yield f"- {first}"
            yield from (f"  {line}" for line in others)
        else:
            yield from _entry("-", part)


def _entry(start: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield start
        yield from (f"  {line}" for line in _lines(value))
    elif isinstance(value, str) and (folded := _folded(value)):
        yield f"{start} >-"
        yield from (f"  {line}" for line in folded)
    else:
        yield f"{start} {_scalar(value)}"


def _folded(text: str) -> list[str]:
    """A long text's lines, where folding gives the very text back; else none."""
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False) if len(text) > 60 else []
    return lines if " ".join(lines) == text else []


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        text = json.dumps(value)
        mantissa, _, exponent = text.partition("e")
        return text if "." in mantissa or not exponent else f"{mantissa}.0e{exponent}"  # YAML 1.1 reads 1e-08 as text
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)
