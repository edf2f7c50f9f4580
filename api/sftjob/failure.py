"""Why a launcher, a trainer or a user's file stopped a job: one exception, one list of reasons, their exit codes."""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """How a launcher ends. sysexits.h where it has a code."""

    SUCCEEDED = 0
    CONFIGURATION = 64
    DATA = 65
    MODEL = 66
    SOFTWARE = 70
    STORAGE = 73
    PREEMPTED = 75
    SUPERSEDED = 76


class Reason(StrEnum):
    """The cause of an attempt's end, as it stands in status and outcome."""

    SUCCEEDED = "Succeeded"
    INVALID_CONFIGURATION = "InvalidConfiguration"
    INVALID_DATA = "InvalidData"
    MODEL_UNREADABLE = "ModelUnreadable"
    HUB_UNREACHABLE = "HubUnreachable"
    STORAGE_REFUSED = "StorageRefused"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    PREEMPTED = "Preempted"
    SUPERSEDED = "Superseded"
    NON_FINITE_GRADIENT = "NonFiniteGradient"
    OUT_OF_MEMORY = "OutOfMemory"
    RANK_KILLED = "RankKilled"
    RANK_FAILED = "RankFailed"
    TORCHRUN_LOST = "TorchrunLost"
    LAUNCHER_LOST = "LauncherLost"
    LAUNCHER_FAILED = "LauncherFailed"


_EXIT_CODES = {
    Reason.SUCCEEDED: ExitCode.SUCCEEDED,
    Reason.INVALID_CONFIGURATION: ExitCode.CONFIGURATION,
    Reason.INVALID_DATA: ExitCode.DATA,
    Reason.MODEL_UNREADABLE: ExitCode.MODEL,
    Reason.STORAGE_REFUSED: ExitCode.STORAGE,
    Reason.STORAGE_UNAVAILABLE: ExitCode.STORAGE,
    Reason.PREEMPTED: ExitCode.PREEMPTED,
    Reason.SUPERSEDED: ExitCode.SUPERSEDED,
}

NEVER_RETRIED = frozenset(
    {
        Reason.INVALID_CONFIGURATION,
        Reason.INVALID_DATA,
        Reason.MODEL_UNREADABLE,
        Reason.STORAGE_REFUSED,
        Reason.NON_FINITE_GRADIENT,
    }
)
"""Another attempt would end the same way: the run is deterministic, so is a refused file."""

DISRUPTIONS = frozenset({Reason.PREEMPTED, Reason.SUPERSEDED, Reason.LAUNCHER_LOST})
"""Not the job's own fault: they use `disruptionRetries`, not `retries`."""


def exit_code(reason: Reason) -> ExitCode:
    return _EXIT_CODES.get(reason, ExitCode.SOFTWARE)


class JobFailure(Exception):
    """Ends an attempt with a cause that its user can act on.

    The message names path, value and remedy; it is shown as it is, without a traceback.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
