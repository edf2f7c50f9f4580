"""What the end-to-end tests do to a run from inside: Python loads this file first in every process of it.

It lies in the tests: the product has no crash points. Each fault but the last strikes once and leaves a mark.

`SFTJOB_TEST_FAULT` is JSON: a process kills, or stops, itself at one exact system event. Audit event, a pattern for its
arguments, how many such events pass before, a file that marks the deed, the signal's name, and `for_ever` where a
process that has been stopped must stop again, whoever wakes it.

`SFTJOB_TEST_STAY` is JSON: a rank never returns from a function. Module, function (`Class.method`), rank, how many
calls pass before, and a file for its pid. As long as that process lives, and no longer, the launcher's limits are
`limit` seconds, if one is given.

`SFTJOB_TEST_NO_FORKS`: torchrun's process takes each file that it has open for a GPU, and does not fork.

`SFTJOB_TEST_MEMORY` is a number of tokens: a rank whose micro-batch has more of them asks torch for memory that there
is not.
"""

import importlib.util
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

if "SFTJOB_TEST_FAULT" in os.environ:
    fault = json.loads(os.environ["SFTJOB_TEST_FAULT"])
    pattern = re.compile(fault["pattern"])
    seen = 0

    def signal_at(event: str, arguments: tuple[object, ...]) -> None:
        global seen
        if event != fault["event"] or not pattern.search(" ".join(map(str, arguments))):
            return
        seen += 1
        if seen > fault["after"] and not os.path.exists(fault["mark"]):  # noqa: PTH110 - pathlib would be audited too
            os.close(os.open(fault["mark"], os.O_CREAT))
            os.kill(os.getpid(), signal.Signals[fault["signal"]])
            while fault.get("for_ever"):
                os.kill(os.getpid(), signal.Signals[fault["signal"]])

    sys.addaudithook(signal_at)


class Changing:
    """A finder of modules that hands one of them to `change` when it has been imported."""

    def __init__(self, module: str, change: Callable[[ModuleType], None]) -> None:
        self.module, self.change = module, change

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> object:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            self.change(module)

        spec.loader.exec_module = execute_and_change
        return spec


if "SFTJOB_TEST_NO_FORKS" in os.environ:
    sys.meta_path.insert(0, Changing("sft_trainer.launcher.forked", lambda forked: setattr(forked, "_DEVICES", ("/",))))

if "SFTJOB_TEST_MEMORY" in os.environ:
    most = int(os.environ["SFTJOB_TEST_MEMORY"])

    def ask_for_too_much(_: ModuleType) -> None:
        import torch
        from torch.nn.modules.module import register_module_forward_pre_hook

        def ask(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            if isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled() and arguments[0].numel() > most:
                torch.empty(1 << 50)

        register_module_forward_pre_hook(ask)

    sys.meta_path.insert(0, Changing("sft_trainer.rank", ask_for_too_much))

if "SFTJOB_TEST_STAY" in os.environ:
    stay = json.loads(os.environ["SFTJOB_TEST_STAY"])
    mark = Path(stay["mark"])

    def stays_for_ever(*_: object) -> None:
        with mark.open("x") as file:
            file.write(str(os.getpid()))
        while True:
            time.sleep(1)

    def stuck_rank_lives() -> bool:
        try:
            os.kill(int(mark.read_text()), 0)
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return False
        return True

    def change_function(module: ModuleType) -> None:
        owner_name, _, name = stay["function"].rpartition(".")
        owner = getattr(module, owner_name) if owner_name else module
        function, calls = getattr(owner, name), 0

        def changed(*arguments: object, **options: object) -> object:
            nonlocal calls
            if os.environ.get("RANK") == str(stay["rank"]):
                calls += 1
                if calls > stay["after"] and not mark.exists():
                    stays_for_ever()
            return function(*arguments, **options)

        setattr(owner, name, changed)

    def change_limits(sections: ModuleType) -> None:
        known = sections.RankTimes.limit_seconds.fget
        sections.RankTimes.limit_seconds = property(
            lambda times: stay["limit"] if stuck_rank_lives() and known(times) is not None else known(times)
        )

    sys.meta_path.insert(0, Changing(stay["module"], change_function))
    if "limit" in stay:
        sys.meta_path.insert(0, Changing("sft_trainer.launcher.sections", change_limits))
