"""Children of the launcher and of its torchrun: `python -m sft_trainer.child <stage> <parent's pid> <scratch folder>`.

The stage is download, prepare, rank or script; a script's path and arguments follow. `forked` calls `main` without the
command.

What must hold from the first moment comes before the imports that take seconds: no child outlives its parent, and a
rank that is told to stop while it starts still hears it.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sft_trainer.death import die_with_parent
from sft_trainer.launcher.processes import name_this_process
from sft_trainer.stop import StopSignal

if TYPE_CHECKING:
    from sftjob.progress import Stage


def main(stage: str, parent_pid: str, scratch: str, *script: str) -> int:
    die_with_parent(int(parent_pid))
    name_this_process(f"sft-{stage}")
    if stage == "prepare":
        from sft_trainer.prepare import prepare_stage

        return prepare_stage(Path(scratch))
    if stage == "download":
        from sft_trainer.downloads.stage import download_stage

        code = download_stage(Path(scratch))
    elif stage == "script":
        from sft_trainer.script import script_stage
        from sftjob.progress import Stage

        _tell_of_rank(Path(scratch), Stage.RUNNING_SCRIPT)
        path, *arguments = script
        code = script_stage(Path(scratch), path, arguments)
    else:
        stop = StopSignal()
        from sftjob.progress import Stage

        _tell_of_rank(Path(scratch), Stage.STARTING)
        from sft_trainer.rank import rank_stage

        code = rank_stage(Path(scratch), stop)
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written. Python's own exit now and then aborts a rank that has succeeded (seen: SIGABRT, "terminate called
    # without an active exception"), since threads of torch outlive the interpreter that they call; and it would wait
    # for connections that still receive what a failed download does not want any more.
    os._exit(code)


def _tell_of_rank(scratch: Path, stage: "Stage") -> None:
    """Where this rank is, from now on; from its first mark on its launcher may ask for stacks."""
    from sft_trainer.marks import Marker
    from sft_trainer.stacks import answer_with_stacks

    rank = int(os.environ["RANK"])
    name_this_process(f"sft-rank-{rank}")
    answer_with_stacks(scratch, rank)
    Marker(scratch, rank).mark(stage)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
