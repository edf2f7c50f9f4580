"""A child that dies with its parent, even where the parent is SIGKILLed and can't say anything.

torchrun's ranks, when orphaned, would train on and publish.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """SIGKILLs this process when the thread that started it ends. Linux; elsewhere it does nothing.

    `parent_pid` is the parent's own word: where it died before this call, this process is an orphan already.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
