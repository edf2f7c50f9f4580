"""torchrun for one node, as a child of the launcher: starts the ranks, and writes down which failed and how.

`python -m sft_trainer.launcher.torchrun <JSON of TorchrunTask>`. The same agent as the `torchrun` command, called as
a library so that the exit code of every rank reaches the launcher.
"""

import os
import sys
from pathlib import Path
from typing import Any

from sft_trainer.death import die_with_parent
from sft_trainer.launcher.exits import RankExits, TorchrunTask, rank_exits_path, torchrun_logs

SURVIVORS_SECONDS = 5
"""After a rank's death: from SIGTERM to SIGKILL of the others, which can't save without it."""


def main(task: TorchrunTask) -> int:
    die_with_parent(task.parent_pid)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.api import PContext
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    scratch, single = Path(task.scratch), task.nodes == 1
    close = PContext.close

    def note_and_close(context: Any, death_sig: Any = None, timeout: int = SURVIVORS_SECONDS) -> None:
        """Who is dead before torchrun ends the others is the cause. The 30 s that torch gives those have no option."""
        exit_codes = {
            task.node_rank * task.processes_per_node + local_rank: handler.proc.poll()
            for local_rank, handler in context.subprocess_handlers.items()
        }
        failed = {rank: code for rank, code in exit_codes.items() if code}
        if failed and not rank_exits_path(scratch).exists():
            rank_exits_path(scratch).write_text(RankExits(exit_codes=failed).to_json())
        close(context, death_sig, timeout)

    PContext.close = note_and_close
    config = LaunchConfig(
        min_nodes=task.nodes,
        max_nodes=task.nodes,
        nproc_per_node=task.processes_per_node,
        run_id=task.run_id,
        rdzv_backend="c10d" if single else "static",
        rdzv_endpoint="127.0.0.1:0" if single else f"{task.master_address}:{task.master_port}",
        rdzv_configs={} if single else {"rank": task.node_rank},
        local_addr="127.0.0.1" if single else None,
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=task.shutdown_seconds,
        log_line_prefix_template="[rank ${rank}] ",
        logs_specs=DefaultLogsSpecs(log_dir=str(torchrun_logs(scratch)), tee=Std.ERR),
    )
    stage = "script" if task.script else "rank"
    # -P: beside a script lies what it imports; the current folder is nobody's.
    rank_command = ["-u", *(["-P"] if task.script else []), "-m", "sft_trainer.child", stage, str(os.getpid())]
    try:
        elastic_launch(config, sys.executable)(*rank_command, task.scratch, *task.script)
    except (ChildFailedError, SignalException):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(TorchrunTask.from_json(sys.argv[1])))
