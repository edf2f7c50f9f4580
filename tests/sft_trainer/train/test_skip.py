"""Steps that change nothing because of their gradient's norm: what stays as it was, what is counted, when it ends."""

from pathlib import Path

import pytest
import torch
from small_run import SmallRun

from sft_trainer.train import loop
from sft_trainer.train.skip import Verdict, judge_gradient, skips
from sftjob.failure import JobFailure, Reason

NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
def norms(monkeypatch):
    """Gradient norms from the first step of an attempt on, in place of the measured ones."""
    clip = loop.clip_gradients

    def give(*values: float) -> None:
        left = list(values)

        def clip_and_tell(*arguments, **options) -> torch.Tensor:
            clip(*arguments, **options)
            return torch.tensor(left.pop(0))

        monkeypatch.setattr(loop, "clip_gradients", clip_and_tell)

    return give


def test_a_skipped_step_leaves_weights_moments_and_the_optimisers_step(tmp_path: Path, norms) -> None:
    norms(1.0, 5.1, NAN, 5.0)
    run = SmallRun(tmp_path / "run", threshold=5.0, total_steps=4)
    state = run.go()
    assert state.skipped_steps == 2
    assert [line["skipped_steps"] for line in run.lines()] == [0, 1, 2, 2]
    assert [line["grad_norm"] for line in run.lines()] == [1.0, pytest.approx(5.1), None, 5.0]
    first, second, third, fourth = (run.tensors(step) for step in (1, 2, 3, 4))
    trained = [name for name in first if name.startswith(("model.", "optimizer."))]
    assert len(trained) > 60
    for name in trained:
        assert torch.equal(second[name], first[name]), name
        assert torch.equal(third[name], first[name]), name
        assert not torch.equal(fourth[name], first[name]), name


def test_the_bias_correction_counts_the_taken_steps_also_after_a_resume(tmp_path: Path, norms) -> None:
    everything = (1.0, 9.0, 9.0, 1.0, 1.0)
    norms(*everything)
    run = SmallRun(tmp_path / "undisturbed", threshold=5.0, total_steps=5)
    run.go()
    resumed = run.another("resumed")
    norms(*everything[:3])
    with pytest.raises(IndexError):  # killed, as it were, before the fourth update
        resumed.go()
    norms(*everything[3:])
    assert resumed.go().skipped_steps == 2
    for name, tensor in run.tensors(5).items():
        assert torch.equal(resumed.tensors(5)[name], tensor), name


def test_the_third_gradient_in_a_row_that_is_not_finite_ends_the_job_across_a_resume(tmp_path: Path, norms) -> None:
    norms(1.0, NAN, INFINITE, 1.0, NAN, INFINITE)
    run = SmallRun(tmp_path / "run", total_steps=9)
    with pytest.raises(IndexError):
        run.go()
    assert run.checkpoints() == [1, 2, 3, 4, 5, 6]
    norms(NAN)
    with pytest.raises(JobFailure, match="step 7: the gradient norm is nan, as in the 2 steps before") as caught:
        run.go()
    assert caught.value.reason is Reason.NON_FINITE_GRADIENT


def test_where_numbers_are_read_a_step_later_the_same_step_ends_the_job_one_step_later(
    tmp_path: Path, norms, monkeypatch
) -> None:
    monkeypatch.setattr(loop, "steps_ahead", lambda _: 1)  # as on a GPU
    norms(1.0, NAN, NAN, INFINITE, 1.0)
    run = SmallRun(tmp_path / "run", interval=None, total_steps=9)
    with pytest.raises(JobFailure, match="step 4: the gradient norm is inf, as in the 2 steps before"):
        run.go()
    assert [(line["step"], line["skipped_steps"]) for line in run.lines()] == [(1, 0), (2, 1), (3, 2)]
    assert run.checkpoints() == []


def test_a_real_overflow_is_skipped_and_ends_as_nothing_finite_follows(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", lr=1e38, total_steps=9)
    with pytest.raises(JobFailure, match=r"lower spec\.training\.optimizer\.lr"):
        run.go()
    # A line that other languages read: without NaN.
    assert [(line["loss"], line["grad_norm"]) for line in run.lines()[1:]] == [(None, None)] * 2


def test_a_norm_is_judged_by_threshold_and_history() -> None:
    def judged(norm: float, threshold: float | None, non_finite_before: int) -> Verdict:
        skipped = bool(skips(torch.tensor(norm), threshold=threshold))
        return judge_gradient(norm, skipped=skipped, threshold=threshold, non_finite_before=non_finite_before)

    assert judged(5.0, 5.0, 2) == Verdict(None, 0)
    assert judged(1e30, None, 0) == Verdict(None, 0)
    above = judged(5.5, 5.0, 1)
    assert above == Verdict("its gradient norm 5.5 is above skipGradNormThreshold 5", 0)
    assert not above.is_fatal
    assert not judged(NAN, None, 1).is_fatal
    assert judged(INFINITE, 5.0, 2).is_fatal
    # 0.1 in fp32 is above 0.1.
    assert judged(0.1, 0.1, 0).skips
