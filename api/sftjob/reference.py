"""Writes the reference page of the SFTJob resource from its declaration: `python -m sftjob.reference`."""

import json
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sftjob.names import API_VERSION
from sftjob.shapes import bounds, shape
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
        shown, nested, is_list = shape(field.annotation)
        if nested and is_list:
            path += "[]"
        text = " ".join((field.description or (nested and nested.__doc__) or "").split()).replace("|", "\\|")
        # What the status has is found, and kept as it is.
        limits = bounds(field) if prefix.startswith("spec") else ""
        kind = ", ".join(part for part in (shown, limits) if part).replace("|", "\\|")
        yield f"`{path}`", kind, _default(field), text
        if nested:
            yield from _rows(nested, path)


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
