"""The chunked loss against plain autograd over all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sft_trainer.loss.cross_entropy import HeadArithmetic, summed_cross_entropy
from sftjob.options import CELossConfig

N, D, V = 61, 16, 128
PLAIN = HeadArithmetic()
ARITHMETIC = {
    "plain": PLAIN,
    "scaled": HeadArithmetic(scale=0.3),
    "softcapped": HeadArithmetic(softcap=2.0),
    "both": HeadArithmetic(scale=0.5, softcap=3.0),
}


def _inputs(*, rows: int = N, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "hidden_ND": torch.randn(rows, D, generator=generator).to(dtype).requires_grad_(),
        "weight_VD": torch.randn(V, D, generator=generator).to(dtype).requires_grad_(),
        "bias_V": torch.randn(V, generator=generator).to(dtype).requires_grad_(),
        "labels_N": torch.randint(V, (rows,), generator=generator),
    }


def _loss(inputs: dict[str, torch.Tensor], *, chunk_size: int, arithmetic: HeadArithmetic = PLAIN) -> torch.Tensor:
    return summed_cross_entropy(**inputs, config=CELossConfig(chunk_size=chunk_size), arithmetic=arithmetic)


@pytest.mark.parametrize("arithmetic", ARITHMETIC.values(), ids=ARITHMETIC.keys())
@pytest.mark.parametrize("chunk_size", [1, 8, N, 1024])
def test_chunks_give_the_loss_and_gradients_of_all_rows_at_once(chunk_size: int, arithmetic: HeadArithmetic) -> None:
    chunked, eager = _inputs(), _inputs()
    ours = _loss(chunked, chunk_size=chunk_size, arithmetic=arithmetic)
    logits = F.linear(eager["hidden_ND"], eager["weight_VD"], eager["bias_V"]) * arithmetic.scale
    if arithmetic.softcap is not None:
        logits = arithmetic.softcap * torch.tanh(logits / arithmetic.softcap)
    expected = F.cross_entropy(logits, eager["labels_N"], reduction="sum")
    # As the Trainer divides by the global count.
    (ours / 37).backward()
    (expected / 37).backward()
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-5)
    for name in ("hidden_ND", "weight_VD", "bias_V"):
        torch.testing.assert_close(chunked[name].grad, eager[name].grad, rtol=1e-5, atol=1e-6)


def test_a_label_that_the_model_holds_impossible_has_the_loss_of_its_distance() -> None:
    """Its probability is none that fp32 can hold."""
    inputs = _inputs()
    with torch.no_grad():
        inputs["weight_VD"] *= 100
        logits = F.linear(inputs["hidden_ND"], inputs["weight_VD"], inputs["bias_V"])
        assert not logits.softmax(dim=-1).gather(-1, inputs["labels_N"][:, None]).all()
    expected = F.cross_entropy(logits, inputs["labels_N"], reduction="sum")
    torch.testing.assert_close(_loss(inputs, chunk_size=8), expected)


def test_the_two_modes_agree() -> None:
    inputs = _inputs()
    eager = summed_cross_entropy(**inputs, config=CELossConfig(mode="eager"), arithmetic=ARITHMETIC["both"])
    torch.testing.assert_close(_loss(inputs, chunk_size=8, arithmetic=ARITHMETIC["both"]), eager)


def test_never_more_logits_than_those_of_one_chunk_exist() -> None:
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numbers = max(self.numbers, result.numel())
            return result

    inputs = _inputs(rows=400)
    with Largest() as largest:
        _loss(inputs, chunk_size=8).backward()
    assert 8 * V < V * D < 400 * V
    assert largest.numbers <= max(V * D, 400 * D)


def test_of_a_chunks_logits_no_second_tensor_is_made() -> None:
    class Made(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.logits: dict[int, torch.Tensor] = {}  # held, or memory that is free again would be met twice

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape == (N, V):
                self.logits[result.untyped_storage().data_ptr()] = result
            return result

    with Made() as made:
        _loss(_inputs(), chunk_size=N).backward()
    assert len(made.logits) == 1


def test_without_gradients_no_gradient_is_computed() -> None:
    inputs = _inputs()
    with torch.no_grad():
        loss = _loss(inputs, chunk_size=8)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, _loss(inputs, chunk_size=8).detach())


def test_a_bf16_head_sums_its_gradient_over_chunks_in_fp32() -> None:
    """With one row a chunk: summed in bf16, the error over 400 rows is 1 %."""
    rounded = _inputs(rows=400, dtype=torch.bfloat16)
    exact = {name: value.detach().float().requires_grad_() for name, value in rounded.items() if name != "labels_N"}
    loss = _loss(rounded, chunk_size=1)
    loss.backward()
    _loss(exact | {"labels_N": rounded["labels_N"]}, chunk_size=400).backward()
    assert loss.dtype == torch.float32
    assert rounded["weight_VD"].grad.dtype == torch.bfloat16
    error = (rounded["weight_VD"].grad.float() - exact["weight_VD"].grad).norm() / exact["weight_VD"].grad.norm()
    assert error < 0.005


def test_a_second_backward_is_refused_instead_of_doubling_what_the_first_scaled() -> None:
    loss = _loss(_inputs(), chunk_size=8)
    loss.backward(torch.tensor(2.0), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
