"""For how long a running attempt has shown nothing new, in this process's own monotonic time.

Kept by the backends for `Observation.silent_seconds`. A process that has just begun knows of no silence, and a launcher
that does not answer makes none: a restart or a broken network delays the end of an attempt and never brings it about.
"""

from collections.abc import Hashable, Set
from dataclasses import dataclass

from sft_operator.lifecycle.observation import AttemptObservation, NodeState
from sftjob.progress import Progress


@dataclass(frozen=True)
class _Sign:
    content: Hashable
    since: float


class Silence:
    def __init__(self) -> None:
        self._last: dict[str, _Sign] = {}
        """By the job's uid."""

    def seconds(
        self, uid: str, attempt: AttemptObservation | None, progress: Progress | None, *, heard_at: float, now: float
    ) -> float:
        """`heard_at` is when the launcher answered last, in the same monotonic seconds as `now`.

        Time counts while all nodes run, from the last change of step, stage, detail or checkpoint on.
        """
        if attempt is None or any(node.state is not NodeState.RUNNING for node in attempt.nodes):
            self._last.pop(uid, None)
            return 0.0
        told = progress and (progress.stage, progress.detail, progress.step, progress.saved_step)
        content = (attempt.number, told)
        last = self._last.get(uid)
        if last is None or last.content != content:
            last = self._last[uid] = _Sign(content, now)
        return max(0.0, heard_at - last.since)

    def keep_only(self, uids: Set[str]) -> None:
        for uid in self._last.keys() - uids:
            del self._last[uid]
