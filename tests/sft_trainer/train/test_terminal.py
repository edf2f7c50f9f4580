"""What a Trainer shows: on a terminal one bar, elsewhere a line for each step; samples in colour where log lines go."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import SmallRun

from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.datasets.shown import log_samples

RUN = """
import logging, sys
from pathlib import Path
from small_run import SmallRun

logging.basicConfig(level=logging.INFO, format="%(message)s")
SmallRun(Path(sys.argv[1]), total_steps=3, evaluation={"every_steps": 2}).go()
print("after it")
"""
FIGURES = r"loss \d+\.\d{3}, .*lr 3\.00e-03, grad norm [\d.]+, [\d,]+ tokens/s, data wait \d+%, memory \d+\.\d GB"


def on_a_terminal(folder: Path) -> tuple[str, str]:
    """stdout, and what arrived at the terminal that stderr is."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "150", "TERM": "xterm"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder)], stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    ) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                written += os.read(ours, 65536)
            except OSError:  # nobody has the other side any more
                break
        said = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return said, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode())


def test_on_a_terminal_there_is_one_bar_and_other_lines_stand_above_it(tmp_path: Path) -> None:
    said, terminal = on_a_terminal(tmp_path / "run")
    assert said == "after it\n"
    lines = [line.strip() for line in re.split(r"[\r\n]+", terminal)]
    assert len([line for line in lines if line.startswith("step 2 evaluation loss ")]) == 1
    assert not [line for line in lines if line.startswith("step 3/3, loss")]
    bar, figures = [line for line in lines if line][-2:]
    assert re.fullmatch(r"exporting: model  ━{32}  step 3/3  100%  0 s left", bar)
    assert re.match(FIGURES, figures)


def test_elsewhere_each_step_is_a_line_with_every_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        SmallRun(tmp_path / "run", total_steps=3, interval=None).go()
    steps = [message for message in caplog.messages if re.match(r"step \d/3, ", message)]
    assert [message[:8] for message in steps] == ["step 1/3", "step 2/3", "step 3/3"]
    assert re.fullmatch(f"step 3/3, {FIGURES}, 0 s left", steps[-1])


@pytest.mark.parametrize("terminal", ["stdout", "stderr"])
def test_samples_have_colour_where_the_log_is_a_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, terminal: str
) -> None:
    run = SmallRun(tmp_path / "run")
    options = run.options()
    data = prepare_data(
        options.dataloader_cfg, tokenizer_path=options.tokenizer_path, cache_dir=tmp_path / "cache", seed=0
    )
    for name in ("stdout", "stderr"):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda is_one=name == terminal: is_one)
        monkeypatch.setattr(sys, name, stream)
    with caplog.at_level("INFO"):
        log_samples(data, tokenizer_path=options.tokenizer_path)
    has_colour = terminal == "stderr"
    said = "\n".join(caplog.messages)
    assert ("\x1b[1;32m" in said, "in green" in said, "⟦" in said) == (has_colour, has_colour, not has_colour)
