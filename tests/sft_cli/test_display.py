"""What `sft run` shows while it trains: on a terminal of any width, and elsewhere."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from sft_cli.display import Display
from sftjob.inspection import Piece, ShownSamples
from sftjob.job import SFTJob
from sftjob.progress import Progress, Stage
from sftjob.receipt import DataReceipt
from sftjob.status import Phase, SFTJobStatus
from tests.sftjob.bad_manifests import LEAST

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TRAINING = Progress(
    attempt=1,
    stage=Stage.TRAINING,
    step=420,
    total_steps=1000,
    loss=1.3104,
    learning_rate=5.9e-5,
    grad_norm=0.8421,
    skipped_steps=1,
    eval_loss=1.42,
    best_eval_loss=1.40,
    best_step=300,
    tokens_per_second=12345.0,
    mfu=0.483,
    data_wait=0.012,
    memory_bytes=71_200_000_000,
    eta_seconds=850,
    saved_step=400,
    reported_at=NOW,
)


def screen(progress: Progress | None, *, width: int, is_terminal: bool = True) -> list[str]:
    """What stands there after one look."""
    console = Console(file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=None, _environ={})
    status = SFTJobStatus(phase=Phase.RUNNING)
    status = status.model_copy(update={"attempts": status.attempts.model_copy(update={"current": 1})})
    job = SFTJob.model_validate(LEAST | {"metadata": LEAST["metadata"] | {"uid": "u"}}).model_copy(
        update={"status": status}
    )
    display = Display(console, known=status)
    display.show(job, progress, now=NOW)
    if is_terminal:
        console.print(display._view._shown)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            100,
            [
                "attempt 1: training  ━━━━━━━━━━━━━───────────────────  step 420/1000  42%  14 min 10 s left",
                "loss 1.310, evaluation loss 1.420 (lowest 1.400, step 300), lr 5.90e-05, grad norm 0.842",
                "12,345 tokens/s, MFU 48%, data wait 1%, memory 71.2 GB, 1 step skipped, saved step 400",
            ],
        ),
        (
            60,
            [
                "attempt 1: training",
                "━━━━━━━━────────────  step 420/1000  42%  14 min 10 s left",
                "loss 1.310, evaluation loss 1.420 (lowest 1.400, step 300)",
                "lr 5.90e-05, grad norm 0.842, 12,345 tokens/s, MFU 48%",
                "data wait 1%, memory 71.2 GB, 1 step skipped",
                "saved step 400",
            ],
        ),
    ],
)  # fmt: skip
def test_a_terminal_has_one_bar_and_every_figure_whole(width: int, expected: list[str]) -> None:
    # The spinner comes first.
    first, *rest = screen(TRAINING, width=width)
    assert [first[2:], *rest] == expected


def test_before_the_first_step_there_is_a_spinner_alone() -> None:
    progress = Progress(attempt=1, stage=Stage.PREPARING_DATA, detail="812 of 1319 rows", reported_at=NOW)
    [line] = screen(progress, width=60)
    assert line[2:] == "attempt 1: preparing data: 812 of 1319 rows"


def test_elsewhere_it_is_one_line() -> None:
    assert screen(TRAINING, width=60, is_terminal=False) == [
        "attempt 1: training; step 420/1000, loss 1.310, evaluation loss 1.420 (lowest 1.400, step 300), lr 5.90e-05, "
        "grad norm 0.842, 12,345 tokens/s, MFU 48%, data wait 1%, memory 71.2 GB, 1 step skipped, saved step 400, "
        "14 min 10 s left"
    ]


def test_the_newest_evaluation_that_is_the_best_is_told_once() -> None:
    best = TRAINING.model_copy(update={"eval_loss": 1.4})
    [line] = screen(best, width=60, is_terminal=False)
    assert "evaluation loss 1.400, lr" in line


def test_samples_stand_above_the_bar_with_what_is_trained_in_green() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=60, _environ={})
    pieces = [Piece(text="asked ", is_trained=False), Piece(text="answered", is_trained=True)]
    prepared = ShownSamples(
        receipt=DataReceipt(samples=1, tokens=2, trained_tokens=1, packs=1), samples=[pieces, pieces]
    )
    display = Display(console, known=SFTJobStatus())
    display.data(prepared)
    display.data(prepared)
    shown = console.file.getvalue()
    assert shown.startswith("data: 1 sample, 2 tokens, 1 of them trained")
    assert shown.count("asked \x1b[1;32manswered\x1b[0m") == 2
