"""What the launchers of one attempt tell each other, through the storage that they share: a folder, or a bucket.

Called by each node's launcher. Every function raises JobFailure where the storage can't be read or written.
"""

import time
from collections.abc import Callable
from pathlib import Path

from sft_trainer.storage.fence import Fence
from sft_trainer.storage.records import FIELD
from sftjob import names
from sftjob.base import Record
from sftjob.failure import JobFailure, Reason
from sftjob.plan import LaunchPlan

_SHARED_WITHIN_SECONDS = 60
_LOOK_SECONDS = 0.5


class ChosenCheckpoint(Record):
    """`attempts/<N>/resumes-from.json`: what node 0 has found in the bucket."""

    step: int | None = None
    """Of the newest checkpoint that verifies; None where there is none."""


def wait_for_node_zero(plan: LaunchPlan) -> None:
    """Storage is shared if the claim of node 0, which runs by now, shows up here.

    Raises JobFailure(STORAGE_NOT_SHARED) where it doesn't.
    """
    gate, claim = Fence.of(plan), names.node_claim(Path(), plan.attempt, 0).as_posix()
    deadline = time.monotonic() + _SHARED_WITHIN_SECONDS
    while gate.records.read(claim) is None:
        if time.monotonic() > deadline:
            remedy = "use a volume that all nodes mount (ReadWriteMany)"
            if gate.remote:
                remedy = "see that AWS_ENDPOINT_URL names the same store on all nodes"
            raise JobFailure(
                Reason.STORAGE_NOT_SHARED,
                f"{FIELD}: {plan.spec.storage_uri} is not shared: node 0's file {claim} did not appear "
                f"here within {_SHARED_WITHIN_SECONDS} s; {remedy}",
            )
        time.sleep(0.2)


def tell_chosen(plan: LaunchPlan, step: int | None) -> None:
    """Called on node 0."""
    Fence.of(plan).records.replace(_chosen(plan), ChosenCheckpoint(step=step).to_json())


def wait_for_chosen(plan: LaunchPlan, *, on_detail: Callable[[str], None]) -> int | None:
    """For as long as it takes: where node 0 fails, the attempt is ended, and this launcher with it.

    `on_detail` is called at each look, and may raise to stop it.
    """
    records = Fence.of(plan).records
    while (text := records.read(_chosen(plan))) is None:
        on_detail("node 0 looks for the newest checkpoint")
        time.sleep(_LOOK_SECONDS)
    return ChosenCheckpoint.from_json(text).step


def tell_stacks(plan: LaunchPlan, text: str, *, node_rank: int) -> str:
    """That the ranks of this node stand still, and where; returns the file's URI."""
    key = _stacks(plan, node_rank)
    Fence.of(plan).records.replace(key, text)
    return f"{plan.spec.storage_uri}/{key}"


def take_stacks_back(plan: LaunchPlan, *, node_rank: int) -> None:
    """They go on."""
    Fence.of(plan).records.remove(_stacks(plan, node_rank))


def stands_still(plan: LaunchPlan, *, node_rank: int) -> bool:
    """By what its launcher has told."""
    return Fence.of(plan).records.read(_stacks(plan, node_rank)) is not None


def _chosen(plan: LaunchPlan) -> str:
    return names.chosen_checkpoint(Path(), plan.attempt).as_posix()


def _stacks(plan: LaunchPlan, node_rank: int) -> str:
    return names.stacks(Path(), plan.attempt, node_rank).as_posix()
