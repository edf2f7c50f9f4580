"""A rank's SIGTERM while training listens for it, and after."""

import subprocess
import sys
import threading

import pytest

from sft_trainer.stop import StopSignal

PROGRAM = """
import os, signal
from sft_trainer.stop import StopSignal
stop = StopSignal()
{first}
stop.close()
{second}
print("received", stop.received, flush=True)
"""
KILL = "os.kill(os.getpid(), signal.SIGTERM)"


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [("pass", "pass", 0), ("pass", KILL, -15), (KILL, "pass", -15)],
    ids=["none", "after the training", "too late for it"],
)
def test_the_signal_ends_the_process_once_nobody_listens(first: str, second: str, code: int) -> None:
    program = PROGRAM.format(first=first, second=second)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert done.stdout == ("received False\n" if code == 0 else "")


KEYBOARD = """
import os, signal
from sft_trainer.stop import StopSignal
stop = StopSignal(of_keyboard=True)
os.kill(os.getpid(), signal.SIGINT)
print("received", stop.received, flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("still here", flush=True)
"""


def test_the_first_ctrl_c_asks_and_the_second_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", KEYBOARD], capture_output=True, text=True, timeout=300)
    assert done.stdout == "received True\n"
    assert "KeyboardInterrupt" in done.stderr


def test_beside_the_main_thread_training_goes_on_without_signals(caplog: pytest.LogCaptureFixture) -> None:
    made = []
    thread = threading.Thread(target=lambda: made.append(StopSignal(of_keyboard=True)))
    thread.start()
    thread.join()
    (stop,) = made
    assert not stop.received
    assert caplog.messages == ["training runs beside the main thread, which alone hears signals: a stop will not save"]
    stop.close()
