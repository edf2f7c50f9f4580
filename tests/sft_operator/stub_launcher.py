"""A launcher for tests of the local backend: real as a process, and it does what STUB_BEHAVIOUR says."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from sftjob.failure import Reason
from sftjob.outcome import Outcome

behaviour = os.environ["STUB_BEHAVIOUR"]
scratch = Path(os.environ["SFTJOB_SCRATCH"])


def end(reason: Reason) -> None:
    outcome = Outcome(
        attempt=1,
        node_rank=int(os.environ["SFTJOB_NODE_RANK"]),
        reason=reason,
        exit_code=0,
        started_at=datetime.now(UTC),
        ended_at=datetime.now(UTC),
    )
    Path(os.environ["SFTJOB_TERMINATION_MESSAGE"]).write_text(outcome.to_message())
    sys.exit()


if behaviour == "ignores SIGTERM":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif behaviour == "saves":
    signal.signal(signal.SIGTERM, lambda *_: end(Reason.PREEMPTED))
elif behaviour == "has a child":
    child = subprocess.Popen(["sleep", "600"])
    (scratch / "child").write_text(str(child.pid))
elif behaviour == "succeeds":
    end(Reason.SUCCEEDED)
elif behaviour == "exits without a word":
    sys.exit(1)
elif behaviour == "tells its placement":
    names = sorted(name for name in os.environ if name.startswith("SFTJOB_"))
    print({name: os.environ[name] for name in names}, flush=True)
    end(Reason.SUCCEEDED)
(scratch / "is ready").touch()
time.sleep(600)
