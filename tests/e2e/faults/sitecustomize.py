"""Kills, or stops, its own process at one exact system event, once: Python loads it first in every process of a run.

`SFTJOB_TEST_FAULT` is JSON: audit event, a pattern for its arguments, how many such events pass before, a file
that marks the deed, and the signal's name. It lies in the tests: the product has no crash points.
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
