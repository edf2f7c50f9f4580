"""Why a launcher, a trainer or a user's file stopped a job: one exception, one list of reasons, their exit codes."""

import errno
import signal
from enum import IntEnum, StrEnum

from sftjob.base import OpenWord


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


class Reason(OpenWord):
    """The cause of an attempt's end, as it stands in status and outcome."""

    SUCCEEDED = "Succeeded"
    PREPARED = "Prepared"
    INVALID_CONFIGURATION = "InvalidConfiguration"
    INVALID_DATA = "InvalidData"
    MODEL_UNREADABLE = "ModelUnreadable"
    HUB_UNREACHABLE = "HubUnreachable"
    BUCKET_UNREACHABLE = "BucketUnreachable"
    STORAGE_REFUSED = "StorageRefused"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    STORAGE_FULL = "StorageFull"
    STORAGE_NOT_SHARED = "StorageNotShared"
    PREEMPTED = "Preempted"
    SUPERSEDED = "Superseded"
    NON_FINITE_GRADIENT = "NonFiniteGradient"
    OUT_OF_MEMORY = "OutOfMemory"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    LOAD_OUT_OF_MEMORY = "LoadOutOfMemory"
    GPU_FAULT = "GPUFault"
    HANG = "Hang"
    RANK_KILLED = "RankKilled"
    RANK_FAILED = "RankFailed"
    TORCHRUN_LOST = "TorchrunLost"
    NODE_LOST = "NodeLost"
    LAUNCHER_LOST = "LauncherLost"
    LAUNCHER_FAILED = "LauncherFailed"
    NOT_STARTED = "NotStarted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"


class Verdict(StrEnum):
    """Why no further attempt follows, where the last one's own reason doesn't say it."""

    RETRIES_EXHAUSTED = "RetriesExhausted"
    DISRUPTION_RETRIES_EXHAUSTED = "DisruptionRetriesExhausted"
    NO_PROGRESS = "NoProgress"


class Obstacle(StrEnum):
    """What keeps an attempt from starting, as the condition Stalled names it."""

    UNSCHEDULABLE = "Unschedulable"
    SCHEDULING_GATED = "SchedulingGated"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CLAIM_MISSING = "ClaimMissing"
    CLAIM_NOT_SHARED = "ClaimNotShared"
    VOLUME_NOT_MOUNTED = "VolumeNotMounted"
    CONFIG_MAP_MISSING = "ConfigMapMissing"
    SECRET_MISSING = "SecretMissing"
    CONTAINER_REFUSED = "ContainerRefused"
    POD_REFUSED = "PodRefused"
    ATTEMPT_REFUSED = "AttemptRefused"
    NAME_CONFLICT = "NameConflict"
    CONTROLLER_SILENT = "ControllerSilent"
    QUEUE_SILENT = "QueueSilent"
    QUEUE_MISSING = "QueueMissing"
    PYTORCH_JOBS_MISSING = "PyTorchJobsMissing"
    INVALID_SPEC = "InvalidSpec"


_EXIT_CODES = {
    Reason.SUCCEEDED: ExitCode.SUCCEEDED,
    Reason.PREPARED: ExitCode.SUCCEEDED,
    Reason.INVALID_CONFIGURATION: ExitCode.CONFIGURATION,
    Reason.INVALID_DATA: ExitCode.DATA,
    Reason.MODEL_UNREADABLE: ExitCode.MODEL,
    Reason.STORAGE_REFUSED: ExitCode.STORAGE,
    Reason.STORAGE_UNAVAILABLE: ExitCode.STORAGE,
    Reason.STORAGE_FULL: ExitCode.STORAGE,
    Reason.STORAGE_NOT_SHARED: ExitCode.STORAGE,
    Reason.PREEMPTED: ExitCode.PREEMPTED,
    Reason.DEADLINE_EXCEEDED: ExitCode.PREEMPTED,
    Reason.SUPERSEDED: ExitCode.SUPERSEDED,
}

NEVER_RETRIED = frozenset(
    {
        Reason.INVALID_CONFIGURATION,
        Reason.INVALID_DATA,
        Reason.MODEL_UNREADABLE,
        Reason.STORAGE_REFUSED,
        Reason.NON_FINITE_GRADIENT,
        Reason.DEADLINE_EXCEEDED,
    }
)
"""Another attempt would end the same way: the run is deterministic, so is a refused file, and time only passes."""

SHORTAGES = frozenset({Reason.OUT_OF_MEMORY, Reason.GPU_OUT_OF_MEMORY})
"""Of memory: the next attempt lets fewer tokens through the model at a time."""

DISRUPTIONS = frozenset(
    {
        Reason.PREEMPTED,
        Reason.SUPERSEDED,
        Reason.NODE_LOST,
        Reason.LAUNCHER_LOST,
        Reason.GPU_FAULT,
        Reason.NOT_STARTED,
    }
)
"""Not the job's own fault: they use `disruptionRetries`, not `retries`."""


BROUGHT_ABOUT = (Reason.SUPERSEDED, Reason.LAUNCHER_LOST, Reason.RANK_FAILED, Reason.PREEMPTED, Reason.SUCCEEDED)
"""What another node's end can bring about, or what says little of the cause; the more telling first.

A lost node breaks its peers' connections, which end as RankFailed; whatever ends first has its peers preempted.
"""


def exit_code(reason: Reason) -> ExitCode:
    return _EXIT_CODES.get(reason, ExitCode.SOFTWARE)


def storage_reason(error: OSError) -> Reason:
    """Of what could not be written: no room, or a quota that is used up, is told apart."""
    return Reason.STORAGE_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else Reason.STORAGE_UNAVAILABLE


class JobFailure(Exception):
    """Ends an attempt with a cause that its user can act on.

    The message names path, value and remedy; it is shown as it is, without a traceback.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        # Both, so that it can be pickled: ranks tell each other of it.
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


def signal_name(number: int) -> str:
    """Real-time signals have none of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
