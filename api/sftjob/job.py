"""The SFTJob object, and reading one from a user's file with every fault reported at once."""

from typing import Any, Literal

from pydantic import ValidationError, field_validator

from sftjob.base import NEW, Declared, Record
from sftjob.forms import Label
from sftjob.problems import Problem, SpecError, problems_of
from sftjob.spec import SFTJobSpec
from sftjob.status import SFTJobStatus


class UserMetadata(Declared):
    name: Label
    namespace: Label = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Manifest(Declared):
    """What stands in a user's file."""

    api_version: Literal["sftjob.dev/v1alpha1"]
    kind: Literal["SFTJob"]
    metadata: UserMetadata
    spec: SFTJobSpec


class ObjectMeta(Record):
    name: str
    namespace: str
    uid: str
    generation: int = 1
    resource_version: str = ""
    annotations: dict[str, str] = {}


class SFTJob(Record):
    """The stored object: a manifest that was accepted, with identity and status."""

    api_version: Literal["sftjob.dev/v1alpha1"] = "sftjob.dev/v1alpha1"
    kind: Literal["SFTJob"] = "SFTJob"
    metadata: ObjectMeta
    spec: SFTJobSpec
    status: SFTJobStatus = SFTJobStatus()

    @field_validator("status", mode="before")
    @classmethod
    def _with_all_that_is_in_it(cls, stored: Any) -> SFTJobStatus:
        """Whoever reads an object leaves unknown fields out; those of the status are to be written back."""
        return SFTJobStatus.model_validate(stored)


def _kind(document: Any) -> str:
    return "empty" if document is None else f"a {type(document).__name__}"


def parse_manifest(document: Any) -> Manifest:
    """Raises SpecError with every problem found, each with path, value and remedy."""
    if not isinstance(document, dict):
        raise SpecError([Problem("(file)", _kind(document), "write one SFTJob object, see examples/quickstart.yaml")])
    try:
        return Manifest.model_validate(document, context=NEW)
    except ValidationError as error:
        raise SpecError(problems_of(error, Manifest)) from None
