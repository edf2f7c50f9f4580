"""What `make demo` shows, `python -m examples.demo`: a real model is fine-tuned, and answers before and after.

It uses nothing that a user couldn't: model folder, JSONL file, `sft run`, transformers. Everything of a run lies in
`runs/quickstart-<N>`.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from examples import smollm2, tickets
from examples.answer import answer
from examples.smollm2 import ROOT

JOB = "examples/quickstart.yaml"


class Narrator:
    """Says what is going on and how long the demo has been running."""

    def __init__(self) -> None:
        self._console = Console()
        self._started = time.monotonic()

    def stage(self, text: str) -> None:
        elapsed = time.monotonic() - self._started
        self._console.print(Text.assemble((f"\n[{elapsed:4.0f} s] ", "dim"), (text, "bold")), soft_wrap=True)

    def panel(self, title: str, text: str, *, style: str) -> None:
        self._console.print(Panel(Text(text), title=title, title_align="left", border_style=style))

    def result(self, name: str, path: Path) -> None:
        self._console.print(f"{name + ':':14}{path}", markup=False, highlight=False, soft_wrap=True)


def main() -> int:
    narrator = Narrator()
    narrator.stage("1 of 4  The model: SmolLM2-135M-Instruct")
    model = smollm2.prepare()
    run = _new_run()
    narrator.stage("2 of 4  The data: 90 support tickets, answered in one fixed form")
    data = run / "data"
    data.mkdir()
    file = tickets.write(data / "tickets.jsonl")
    example = json.loads(file.read_text().splitlines()[0])["messages"]
    narrator.panel(f"one of the rows in {_short(file)}", "\n\n".join(turn["content"] for turn in example), style="dim")
    narrator.stage(f"3 of 4  Training: sft run {JOB}")
    code = _sft_run(run, model=model, data=data)
    if code:
        return code
    narrator.stage("4 of 4  The same question to both models; it is not in the data")
    tuned = run / "model"
    narrator.panel("question", tickets.UNSEEN_QUESTION, style="cyan")
    narrator.panel("before", answer(model, tickets.UNSEEN_QUESTION), style="yellow")
    narrator.panel("after", answer(tuned, tickets.UNSEEN_QUESTION), style="green")
    narrator.stage("Done")
    narrator.result("model", _short(tuned))
    narrator.result("loss curve", _short(run / "loss.png"))
    narrator.result("ask it more", Path(f'{_short(Path(sys.executable))} -m examples.answer {_short(tuned)} "..."'))
    return 0


def _new_run() -> Path:
    """A folder that no other run has, made here."""
    runs = ROOT / "runs"
    runs.mkdir(exist_ok=True)
    number = 1
    while True:
        folder = runs / f"quickstart-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def _sft_run(run: Path, *, model: Path, data: Path) -> int:
    """The exit code of a real `sft run` in this terminal.

    A signal is its own to handle: it saves, stops, and says how to go on. Meanwhile this process only waits.
    """
    claims = {"models": model.parent, "data": data, "results": run}
    command = [str(Path(sys.executable).with_name("sft")), "run", JOB, "--work-dir", str(_short(run))]
    for claim, folder in claims.items():
        command += ["--claim", f"{claim}={_short(folder)}"]
    child = subprocess.Popen(command, cwd=ROOT)
    # Ctrl-C reaches the child from the terminal; only a signal sent to this process alone must be handed on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _short(path: Path) -> Path:
    return path.relative_to(ROOT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}: see above")
