"""The two kinds of model in the contract: what users write, and what our own parts write.

Both are frozen and spelled in camelCase in files, snake_case in Python.
"""

import hashlib
import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

NEW = "new"
"""The context in which what a user has just written is validated, with rules that stored objects needn't keep."""


class Declared(BaseModel):
    """A model that users fill in: an unknown field is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # what stands under a field is its description in the CRD and the reference
    )

    def to_json_dict(self) -> dict[str, Any]:
        """camelCase, JSON types only, fields that are None left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Record(Declared):
    """A model that our own parts write and read back.

    An older version reads what a newer one wrote, so that a rollback breaks no job. In a stored status unknown fields
    are kept and written back; of what one process tells another (`from_json`) they are left out.
    """

    model_config = ConfigDict(extra="allow")

    def to_json(self, *, indent: int | None = None) -> str:
        """One line unless `indent` is given, in field order."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises pydantic.ValidationError where a required field is missing or the text is torn."""
        return cls.model_validate_json(text, extra="ignore")


class OpenWord(StrEnum):
    """A word of a list that later versions make longer. An unknown one is kept as it is; it equals none of the list."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        word = str.__new__(cls, value)
        word._name_ = word._value_ = value
        return word


Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""What every reader of JSON holds exactly, and the API server takes."""


def digest(value: Any) -> str:
    """`sha256:<hex>` of a JSON value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def utc_now() -> datetime:
    """Whole seconds: what a Kubernetes timestamp can hold."""
    return datetime.now(UTC).replace(microsecond=0)
