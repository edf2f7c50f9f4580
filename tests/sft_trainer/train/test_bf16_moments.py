"""AdamW with moments in bf16, against torch's own AdamW whose moments are rounded after each of its steps."""

from pathlib import Path

import pytest
import torch
from small_run import SmallRun

from sft_trainer.train.checkpoint import create_optimizer_state
from sft_trainer.train.optimizer import build_optimizer
from sftjob.options import AdamWConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def test_a_step_is_torchs_own_from_rounded_moments() -> None:
    torch.manual_seed(1)
    ours, theirs = (torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours, AdamWConfig(lr=1e-2, weight_decay=0.1, moments="bf16"))
    create_optimizer_state(ours, optimizer)
    matrices, vectors = ([p for p in theirs.parameters() if (p.ndim > 1) is is_matrix] for is_matrix in (True, False))
    oracle = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        fused=True,
    )
    for _ in range(20):
        for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            their.grad = mine.grad.clone()
        optimizer.step()
        oracle.step()
        for state in oracle.state.values():
            for moment in MOMENTS:
                state[moment].copy_(state[moment].bfloat16())
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, their)
        for moment in MOMENTS:
            assert optimizer.state[mine][moment].dtype == torch.bfloat16
            assert torch.equal(optimizer.state[mine][moment].float(), oracle.state[their][moment])


def test_a_resumed_run_ends_bit_equal_and_learns_as_with_fp32(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", moments="bf16", total_steps=8)
    fp32 = run.another("fp32", moments="fp32")
    resumed = run.another("resumed", interval=5)
    run.go()
    fp32.go()
    resumed.go()
    for path in (resumed.storage / "step-8").iterdir():
        path.unlink()
    assert resumed.go().resumed_from == 5
    for name, tensor in run.tensors(8).items():
        assert torch.equal(resumed.tensors(8)[name], tensor), name
    losses, oracle = ([line["loss"] for line in one.lines()] for one in (run, fp32))
    assert losses == pytest.approx(oracle, rel=5e-3)
    assert losses[-1] != oracle[-1]
    assert losses[-1] < losses[0] - 0.5


def test_a_run_from_before_the_option_goes_on(tmp_path: Path) -> None:
    """Its checkpoints name the options by this digest."""
    fp32, bf16 = (SmallRun(tmp_path / "run", moments=moments).options().digest() for moments in ("fp32", "bf16"))
    assert fp32 == "sha256:4031332ef932d8fe070543c7db3bdbaa834ff67393ecea92e2ab822173a80e90"
    assert bf16 != fp32
