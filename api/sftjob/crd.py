"""The CustomResourceDefinition of SFTJob, from its declaration: `python -m sftjob.crd` writes it as YAML."""

from typing import Any

from sftjob.forms import LABEL, REMEDIES
from sftjob.names import GROUP, KIND, PLURAL, VERSION
from sftjob.rules import Rule, is_immutable, text_in_cel
from sftjob.spec import SFTJobSpec
from sftjob.status import SFTJobStatus
from sftjob.structural import Schema, spec_schema, status_schema
from sftjob.yaml_text import yaml_text

NAME = f"{PLURAL}.{GROUP}"
MUTABLE = "runPolicy"
"""The one section of a spec that may change after creation."""

_NAME = "metadata.name: '{name}'"
_NAME_RULES = (
    # The API server refuses `metadata.name` as a fieldPath.
    Rule(
        "",
        f"self.metadata.name.matches({text_in_cel(LABEL)})",
        f"{_NAME} has the wrong form; {REMEDIES[LABEL]}",
        {"name": "self.metadata.name"},
    ),
    Rule(
        "",
        "self.metadata.name.size() <= 63",
        f"{_NAME} is too long; use at most 63 characters",
        {"name": "self.metadata.name"},
    ),
)
_COLUMNS = {
    "PHASE": ".status.phase",
    "PROGRESS": ".status.columns.progress",
    "LOSS": ".status.columns.loss",
    "TOKENS/S": ".status.columns.tokensPerSecond",
    "ETA": ".status.columns.eta",
    "SAVED": ".status.columns.saved",
}


def crd() -> dict[str, Any]:
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            *({"name": name, "type": "string", "jsonPath": path} for name, path in _COLUMNS.items()),
            {"name": "ATTEMPT", "type": "integer", "jsonPath": ".status.attempts.current"},
            {"name": "AGE", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
        "schema": {"openAPIV3Schema": _object()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["sft"],
                "categories": ["all"],
            },
            "versions": [version],
        },
    }


def _object() -> Schema:
    spec = spec_schema(SFTJobSpec)
    immutable = [is_immutable(section).validation() for section in spec["properties"] if section != MUTABLE]
    spec["x-kubernetes-validations"] = spec["x-kubernetes-validations"] + immutable
    return {
        "type": "object",
        "description": "Fine-tunes a language model on chats. It needs a model, data and an output, or a script.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status_schema(SFTJobStatus),
        },
        "x-kubernetes-validations": [rule.validation() for rule in _NAME_RULES],
    }


if __name__ == "__main__":
    print("# Generated from api/sftjob by `make generate`.")
    print(yaml_text(crd()), end="")
