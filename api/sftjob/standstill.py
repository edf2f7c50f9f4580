"""What a launcher found when its ranks did not go on: part of its outcome, and of the attempt's record."""

from sftjob.base import Record, Whole
from sftjob.progress import Stage

_STATES = {"T": ", stopped by a signal", "D": ", in a system call that can't be interrupted"}


class Standstill(Record):
    """Of the ranks that stood still, the one for which the others wait."""

    rank: Whole | None = None
    """Absent where the ranks of the node stand at the same place."""
    stage: Stage
    """What it was doing."""
    step: Whole = 0
    """The last step that it had finished."""
    place: Whole = 0
    """How far it had come in what all ranks do alike: the rank with the lowest holds up the others."""
    waits: bool = False
    """It was inside of a collective, waiting for others."""
    state: str = ""
    """Of its process, as Linux has it: T is stopped by a signal, D a system call that can't be interrupted."""
    seconds: Whole = 0
    """For how long it had shown no sign of life."""
    frames: list[str] = []
    """Where it stood: function, file and line, innermost first; of libraries only the innermost one."""
    stacks: str | None = None
    """The file in storage with the stacks of all ranks of its node; absent where it could not be written."""

    @property
    def behind(self) -> tuple[int, bool, bool]:
        """Sort key over all nodes: the lowest is the one for which the others wait."""
        return self.place, self.state != "T", self.waits

    def told(self) -> str:
        who = "all ranks" if self.rank is None else f"rank {self.rank}"
        at = f" at {' < '.join(self.frames)}" if self.frames else ", and gave no stack"
        kept = f"; stacks: {self.stacks}" if self.stacks else ""
        return f"{who} stood in {self.stage} after step {self.step}{_STATES.get(self.state, '')}{at}{kept}"
