"""How long a rank may show no sign of life in each section of a run, learnt from how long it did so before.

Pure: marks and the time between two looks in, silence and limit out. Called by `watch` for each rank of the node.
To end a run that is only slow is far worse than to find a hang late, hence:

- what was never finished in this attempt (set-up, a first save, the first three steps) has an hour, and of the steps
  the first two, which compile, say nothing about later ones;
- later the limit is ten times the longest silence that the section has had, and never under some minutes;
- the time between two looks counts up to 2 s: a launcher that stood still itself, as on a machine that has no CPU left
  or was suspended, has seen nothing;
- in sections that move files, every byte is a sign of life;
- each hang among the attempts before doubles all limits.
"""

from sft_trainer.marks import Mark
from sftjob.progress import Stage

UNKNOWN_SECONDS = 3600.0
FLOOR_SECONDS = 1800.0
STEP_FLOOR_SECONDS = 480.0
FACTOR = 10
WARM_UP_STEPS = 2
LONGEST_GAP_SECONDS = 2.0

_COMPUTING = (Stage.TRAINING, Stage.EVALUATING)


class RankTimes:
    """Of one rank in one attempt."""

    def __init__(self, mark: Mark, *, moved_bytes: int, patience: int) -> None:
        """Every limit is multiplied by `patience`."""
        self.mark = mark
        self.silent_seconds = 0.0
        self._moved_bytes, self._patience = moved_bytes, patience
        self._longest: dict[Stage, float] = {}
        self._finished: set[Stage] = set()
        self._first_step: int | None = None

    @property
    def limit_seconds(self) -> float | None:
        """None: nobody knows what it is doing there."""
        stage = self.mark.stage
        if stage is Stage.RUNNING_SCRIPT:
            return None
        if stage not in self._finished:
            return self._patience * UNKNOWN_SECONDS
        floor = STEP_FLOOR_SECONDS if stage is Stage.TRAINING else FLOOR_SECONDS
        return self._patience * max(floor, FACTOR * self._longest.get(stage, 0.0))

    @property
    def silent_share(self) -> float:
        """Of the limit; 0 where there is none."""
        return self.silent_seconds / self.limit_seconds if self.limit_seconds else 0.0

    def see(self, mark: Mark, *, moved_bytes: int, gap_seconds: float) -> None:
        """`moved_bytes`: by the process since it began. `gap_seconds`: since the look before."""
        self.silent_seconds += min(gap_seconds, LONGEST_GAP_SECONDS)
        before, self.mark = self.mark, mark
        moves = moved_bytes != self._moved_bytes and mark.stage not in _COMPUTING
        self._moved_bytes = moved_bytes
        if mark == before and not moves:
            return
        if before.stage is Stage.TRAINING:
            self._first_step = before.step if self._first_step is None else self._first_step
            counts = before.step - self._first_step >= WARM_UP_STEPS
            # One that counts must have been seen whole: its parts may take from no time to minutes.
            is_finished = mark.step - self._first_step > WARM_UP_STEPS
        else:
            counts, is_finished = True, mark.stage is not before.stage
        if counts:
            self._longest[before.stage] = max(self._longest.get(before.stage, 0.0), self.silent_seconds)
        if is_finished:
            self._finished.add(before.stage)
        self.silent_seconds = 0.0
