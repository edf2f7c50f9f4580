"""torchrun for one node, as a child of the launcher: starts the ranks, and writes down which failed and how.

`python -m sft_trainer.launcher.torchrun <JSON of TorchrunTask>`. The same agent as the `torchrun` command, called as
a library so that the exit code of every rank reaches the launcher. The prepare stage comes first and runs from here
too: it needs the same imports.
"""

import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_trainer.death import die_with_parent
from sft_trainer.launcher.exits import RankExits, TorchrunTask, rank_exits_path, torchrun_logs
from sft_trainer.launcher.forked import ForkedRank, import_what_children_need, opened_devices, run_forked
from sft_trainer.launcher.processes import name_this_process
from sft_trainer.progress import write_stage
from sftjob.progress import Stage

NO_TIMEOUT_SECONDS = 365 * 24 * 3600
"""torch has no word for none. A node waits for the others for as long as the cluster takes to start them: whoever has
waited for too long is told by the run policy's deadlines."""

SURVIVORS_SECONDS = 5
"""After a rank's death: from SIGTERM to SIGKILL of the others, which can't save without it."""


def main(task: TorchrunTask) -> int:
    """The exit code: of a prepare stage that has failed, its own."""
    die_with_parent(task.parent_pid)
    name_this_process("sft-torchrun")
    scratch, ranks = Path(task.scratch), []
    if not task.script:
        import_what_children_need()
        devices = opened_devices()
        if devices:
            print(f"ranks are no forks: an import has opened {', '.join(devices)}", file=sys.stderr)
        code = subprocess.call(_command("prepare", task)) if devices else run_forked("prepare", scratch)
        if code:
            return code if code > 0 else 128 - code
        write_stage(scratch, Stage.STARTING)
        if not devices:
            ranks = [ForkedRank(scratch) for _ in range(task.processes_per_node)]
    return _launch(task, ranks)


def _launch(task: TorchrunTask, ranks: Sequence[ForkedRank]) -> int:
    """`ranks`, where they are forks."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std, api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    class ForkedHandler(SubprocessHandler):
        def _popen(self, _args: Any, env: dict[str, str]) -> Any:
            return ranks[self.local_rank_id].begin(env, self._stderr and self._stderr.name)

    scratch, single = Path(task.scratch), task.nodes == 1
    close = api.PContext.close

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

    api.PContext.close = note_and_close
    if ranks:
        api.get_subprocess_handler = ForkedHandler
    config = LaunchConfig(
        min_nodes=task.nodes,
        max_nodes=task.nodes,
        nproc_per_node=task.processes_per_node,
        run_id=task.run_id,
        rdzv_backend="c10d" if single else "static",
        rdzv_endpoint="127.0.0.1:0" if single else f"{task.master_address}:{task.master_port}",
        rdzv_configs={} if single else {"rank": task.node_rank, "timeout": NO_TIMEOUT_SECONDS},
        local_addr="127.0.0.1" if single else None,
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=task.shutdown_seconds,
        log_line_prefix_template="[rank ${rank}] ",
        logs_specs=DefaultLogsSpecs(log_dir=str(torchrun_logs(scratch)), tee=Std.ALL if task.script else Std.ERR),
    )
    python, *arguments = _command("script" if task.script else "rank", task)
    try:
        elastic_launch(config, python)(*arguments)
    except (ChildFailedError, SignalException):
        return 1
    return 0


def _command(stage: str, task: TorchrunTask) -> list[str]:
    # -P: beside a script lies what it imports; the current folder is nobody's.
    flags = ["-u", *(["-P"] if task.script else [])]
    return [sys.executable, *flags, "-m", "sft_trainer.child", stage, str(os.getpid()), task.scratch, *task.script]


if __name__ == "__main__":
    try:
        code = main(TorchrunTask.from_json(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # `multiprocessing` would wait for a rank that nothing can end, as one that hangs in a driver or was never begun.
    os._exit(code)
