"""An object as the cache keeps it: what the operator reads of it, as JSON text. Dicts take many times the room.

Pure; called by `cache` alone, which unpacks what is asked for.
"""

import json
from collections.abc import Callable
from typing import NamedTuple, Self

from sft_operator.kubernetes.api import Object


class Packed(NamedTuple):
    uid: str
    version: int
    """The API server compares these as integers too, from 1.35 on by its own contract."""
    phase: str | None
    """Of its status."""
    content: bytes

    @classmethod
    def of(cls, found: Object, kept: Callable[[Object], Object]) -> Self:
        content = json.dumps(kept(found), separators=(",", ":"), ensure_ascii=False).encode()
        return cls(found["metadata"]["uid"], version_of(found), found.get("status", {}).get("phase"), content)

    def unpacked(self) -> Object:
        found: Object = json.loads(self.content)
        return found


def version_of(found: Object) -> int:
    return int(found["metadata"]["resourceVersion"])


def job(found: Object) -> Object:
    return found | {"metadata": _metadata(found)}


def pytorch_job(found: Object) -> Object:
    """Without its template, which holds the plan.

    A stranger's, which has our label, needs no run policy, and no spec either.
    """
    return _with_spec(found, {"runPolicy": found.get("spec", {}).get("runPolicy", {})})


def pod(found: Object) -> Object:
    """Of its spec where it runs, or who keeps it from running, of which images, and what it may use."""
    spec = found["spec"]
    containers = [
        {name: container[name] for name in ("name", "image", "resources") if name in container}
        for container in spec["containers"]
    ]
    placed = {name: spec[name] for name in ("nodeName", "schedulingGates") if name in spec}
    return _with_spec(found, placed | {"containers": containers})


def _with_spec(found: Object, spec: Object) -> Object:
    return found | {"metadata": _metadata(found), "spec": spec}


def _metadata(found: Object) -> Object:
    return {name: value for name, value in found["metadata"].items() if name != "managedFields"}
