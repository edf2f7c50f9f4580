"""Whether the cluster's definition of SFTJobs keeps all that this operator writes: its schema in, what it drops out.

Pure. Called by `run` before any job is looked at: an operator whose words are lost would repeat what it has done.
"""

from sft_operator.kubernetes.api import Object
from sftjob.crd import NAME
from sftjob.status import SFTJobStatus
from sftjob.structural import PRESERVE, status_schema

RENEW = "kubectl apply --server-side --force-conflicts -f charts/sft-operator/crds"

_OWN = status_schema(SFTJobStatus)
_MOST_NAMED = 3


def refusal(served: Object) -> str | None:
    """`served` is the schema of an SFTJob as the API server tells it. None: it keeps everything."""
    lost = dropped(_OWN, served["properties"].get("status", {}), "status")
    if not lost:
        return None
    others = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
    return (
        f"the CustomResourceDefinition {NAME} is of an older version and drops "
        f"{', '.join(lost[:_MOST_NAMED])}{others}; no job is touched until it is renewed: {RENEW}"
    )


def dropped(written: Object, served: Object, path: str) -> list[str]:
    """Fields of the schema `written` that an API server with the schema `served` does not store."""
    if "items" in written:
        return dropped(written["items"], served.get("items", {}), f"{path}[]")
    lost = []
    for name, part in written.get("properties", {}).items():
        known = served.get("properties", {}).get(name)
        if known is not None:
            lost += dropped(part, known, f"{path}.{name}")
        elif not served.get(PRESERVE):
            lost.append(f"{path}.{name}")
    return lost
