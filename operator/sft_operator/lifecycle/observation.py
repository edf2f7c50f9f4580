"""What a backend saw of a job's attempts. Written by backends, read by `decide`."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sftjob.failure import Obstacle, Reason
from sftjob.outcome import Outcome
from sftjob.progress import Progress


class NodeState(StrEnum):
    MISSING = "Missing"
    """Its creation was interrupted before it; creating the attempt again makes up for it."""
    PENDING = "Pending"
    RUNNING = "Running"
    ENDED = "Ended"
    """Its launcher has ended, or its pod is gone; with its outcome if one was found."""


class AttemptState(StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    ENDING = "Ending"
    ENDED = "Ended"


@dataclass(frozen=True)
class NodeObservation:
    rank: int
    state: NodeState
    outcome: Outcome | None = None
    pod: str | None = None
    """Its name, and that of the cluster's node that it is on."""
    node: str | None = None
    lingers: bool = False
    """Its launcher has ended, and another container of its pod goes on: the pod holds what it asked for."""

    @property
    def is_live(self) -> bool:
        return self.state in (NodeState.PENDING, NodeState.RUNNING)

    @property
    def has_failed(self) -> bool:
        """It ended, and not with success."""
        succeeded = self.outcome is not None and self.outcome.reason is Reason.SUCCEEDED
        return self.state is NodeState.ENDED and not succeeded


@dataclass(frozen=True)
class AttemptObservation:
    """An attempt of which at least one node was created."""

    number: int
    nodes: tuple[NodeObservation, ...]
    is_deleting: bool = False
    created_at: datetime | None = None
    """None where the moment of its announcement has to do."""
    is_suspended: bool = False
    """By somebody else, who lets no pod of it run."""
    goes_by_itself: bool = False
    """Its deletion is under way, and whoever does it needs no second request."""

    @property
    def state(self) -> AttemptState:
        """It has ended only when every node has."""
        if not any(node.is_live for node in self.nodes):
            return AttemptState.ENDED
        if self.is_deleting:
            return AttemptState.ENDING
        if any(node.state is NodeState.RUNNING for node in self.nodes):
            return AttemptState.RUNNING
        return AttemptState.PENDING

    @property
    def is_live(self) -> bool:
        return self.state is not AttemptState.ENDED

    @property
    def has_failed(self) -> bool:
        return any(node.has_failed for node in self.nodes)

    @property
    def lingers(self) -> bool:
        return any(node.lingers for node in self.nodes)

    @property
    def is_incomplete(self) -> bool:
        return any(node.state is NodeState.MISSING for node in self.nodes)


@dataclass(frozen=True)
class Trouble:
    """What keeps an attempt from starting until somebody changes something: reason and message of Stalled."""

    reason: Obstacle
    message: str
    """With the path of the spec, or the object, and the remedy."""


@dataclass(frozen=True)
class Observation:
    attempts: tuple[AttemptObservation, ...] = ()
    """The newest, and every other one of which something is left. An attempt that isn't here does not exist."""
    progress: Progress | None = None
    """Advisory: the last report that was found, of whichever attempt."""
    trouble: Trouble | None = None
    silent_seconds: float = 0.0
    """For how long the current attempt, which runs as a whole, has shown nothing new; see `silence`."""
    queue_message: str = ""
    """Why the queue does not let the current attempt run, in its own words."""
    default_image: str | None = None
    """Of an attempt that is created now for a spec that names none; None where attempts have no images."""

    def attempt(self, number: int) -> AttemptObservation | None:
        return next((attempt for attempt in self.attempts if attempt.number == number), None)

    def live(self) -> Iterable[AttemptObservation]:
        return (attempt for attempt in self.attempts if attempt.is_live)
