"""The forms that strings of a spec must have, each with the sentence that tells what to write instead.

Patterns are in the syntax that Rust's (pydantic) and Go's (the API server) regular expressions share.
"""

from collections.abc import Collection
from typing import Annotated

from pydantic import Field, StringConstraints

URI_FORMS = "s3://<bucket>/<path>, pvc://<claim>/<path> or file:///<absolute path>"
MODEL_URI_FORMS = f"hf://<owner>/<name>, {URI_FORMS}"
SCRIPT_URI_FORMS = "pvc://<claim>/<path>, configMap://<name>/<key> or file:///<absolute path>"
DATA_URI_FORMS = f"hf://datasets/<owner>/<name>[/<path>], s3://<bucket>/<path>, {SCRIPT_URI_FORMS}"
ARGUMENT_FORMS = "pvc://<claim>/<path> or configMap://<name>/<key>"

_NAME = "[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
_WORD = "[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
_KEY = "[A-Za-z0-9_-][A-Za-z0-9_.-]*"
# Not `\s`, of which Rust and Go mean different characters.
_SPACE = r"\x00-\x20"
_CONTROL = r"\x00-\x1f"
# No part of a path is `.` or `..`: a path on a claim stays on that claim.
_PATH = rf"(/\.?[^/.{_SPACE}][^/{_SPACE}]*)+/?"
_LOCAL = rf"file://(/\.?[^/.{_CONTROL}][^/{_CONTROL}]*)+/?"
_FILE = f"(pvc://{_NAME}{_PATH}|{_LOCAL})"
_PLACE = f"((pvc|s3)://{_NAME}{_PATH}|{_LOCAL})"
_PART_OF_REPOSITORY = "[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REPOSITORY = f"{_PART_OF_REPOSITORY}/{_PART_OF_REPOSITORY}"

PLACE = f"^{_PLACE}$"
MODEL_PLACE = f"^({_PLACE}|hf://{_REPOSITORY})$"
SCRIPT_PLACE = f"^({_FILE}|configMap://{_NAME}/{_KEY})$"
DATA_PLACE = f"^({_PLACE}|configMap://{_NAME}/{_KEY}|hf://datasets/{_REPOSITORY}({_PATH})?)$"
WHOLE_DATASET = f"^hf://datasets/{_REPOSITORY}$"
ARGUMENT_PLACE = f"^(pvc://{_NAME}{_PATH}|configMap://{_NAME}/{_KEY})$"
REVISION = "^[A-Za-z0-9_]([A-Za-z0-9_./-]*[A-Za-z0-9_])?$"
CONFIGURATION = rf"^[^{_SPACE}/]+$"
SPLIT = "^[A-Za-z0-9_]+([.][A-Za-z0-9_]+)*$"
LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
OBJECT_NAME = f"^{_NAME}$"
QUALIFIED_NAME = f"^({_NAME}/)?{_WORD}$"
LABEL_VALUE = f"^({_WORD})?$"
DATA_KEY = f"^{_KEY}$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
IMAGE = rf"^[^{_SPACE}]+$"
FIELDS_OF_FORMATS = {
    "messages": ("messages", "system", "tools"),
    "sharegpt": ("conversations", "system", "tools"),
    "prompt-completion": ("prompt", "completion", "system", "tools"),
    "alpaca": ("instruction", "input", "output", "system", "tools"),
    "text": ("text",),
}
"""What each format of rows reads."""
ROW_FIELDS = tuple(dict.fromkeys(field for fields in FIELDS_OF_FORMATS.values() for field in fields))
ROW_FIELD = f"^({'|'.join(ROW_FIELDS)})$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"


def formats_with(columns: Collection[str]) -> list[str]:
    """Those that read all these fields."""
    return [name for name, fields in FIELDS_OF_FORMATS.items() if set(columns) <= set(fields)]


_WORD_REMEDY = "use letters, digits, dashes, dots and underscores, with a letter or digit at both ends"
REMEDIES = {
    PLACE: f"use {URI_FORMS}, without .. and spaces",
    MODEL_PLACE: f"use {MODEL_URI_FORMS}, without .. and spaces",
    SCRIPT_PLACE: f"use {SCRIPT_URI_FORMS}, without .. and spaces",
    DATA_PLACE: f"use {DATA_URI_FORMS}, without .. and spaces",
    REVISION: "use a branch, a tag or a commit: letters, digits, dots, dashes, underscores and slashes",
    CONFIGURATION: "use the name of one that the dataset has, without spaces and slashes",
    SPLIT: "use the name of one that the dataset has, as train; for a part of it set sampleRatio",
    LABEL: "use lower-case letters, digits and dashes, with a letter or digit at both ends",
    OBJECT_NAME: "use lower-case letters, digits, dashes and dots, with a letter or digit at both ends",
    QUALIFIED_NAME: _WORD_REMEDY,
    LABEL_VALUE: _WORD_REMEDY,
    DATA_KEY: "use letters, digits, dashes, dots and underscores",
    VARIABLE: "use letters, digits and underscores, not beginning with a digit",
    IMAGE: "use an image's name without spaces",
    ROW_FIELD: f"use one of {', '.join(ROW_FIELDS)}",
    QUANTITY: "use a number, with a unit where one is meant, as 500m, 4, 16Gi",
}
"""By pattern."""

LOCAL_ONLY = (PLACE, MODEL_PLACE, DATA_PLACE, SCRIPT_PLACE)
"""Forms of which `file://` is for `sft run` alone."""
LOCAL_ONLY_REMEDY = "is a path on one machine; put it on a volume claim and use pvc://<claim>/<path>"

Uri = Annotated[str, StringConstraints(max_length=512, pattern=PLACE)]
ModelUri = Annotated[str, StringConstraints(max_length=512, pattern=MODEL_PLACE)]
DataUri = Annotated[str, StringConstraints(max_length=512, pattern=DATA_PLACE)]
ScriptUri = Annotated[str, StringConstraints(max_length=512, pattern=SCRIPT_PLACE)]
Revision = Annotated[str, StringConstraints(max_length=255, pattern=REVISION)]
Configuration = Annotated[str, StringConstraints(max_length=255, pattern=CONFIGURATION)]
Split = Annotated[str, StringConstraints(max_length=255, pattern=SPLIT)]
RowField = Annotated[str, StringConstraints(max_length=63, pattern=ROW_FIELD)]
Column = Annotated[str, StringConstraints(max_length=255)]
Label = Annotated[str, StringConstraints(max_length=63, pattern=LABEL)]

# As Kubernetes has them: names of objects and labels, amounts.
ObjectName = Annotated[str, StringConstraints(max_length=253, pattern=OBJECT_NAME)]
QualifiedName = Annotated[str, StringConstraints(max_length=317, pattern=QUALIFIED_NAME)]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE)]
Quantity = Annotated[int, Field(ge=0)] | Annotated[str, StringConstraints(max_length=32, pattern=QUANTITY)]
