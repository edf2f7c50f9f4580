"""Kills, or stops, its own process at one exact system event, once: Python loads it first in every process of a run.

`SFTJOB_TEST_FAULT` is JSON: audit event, a pattern for its arguments, how many such events pass before, a file
that marks the deed, and the signal's name. It lies in the tests: the product has no crash points.

`SFTJOB_TEST_MEMORY` is a number of tokens: a rank whose micro-batch has more of them asks torch for memory that there
is not.
"""

import json
import os
import re
import signal
import sys

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

    sys.addaudithook(signal_at)

if "SFTJOB_TEST_MEMORY" in os.environ and "RANK" in os.environ:
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    most = int(os.environ["SFTJOB_TEST_MEMORY"])

    def ask(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled() and arguments[0].numel() > most:
            torch.empty(1 << 50)

    register_module_forward_pre_hook(ask)
