"""Documents side by side, against a mask written out by hand."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sft_trainer.model import attention
from sft_trainer.model.attention import packed_attention
from sftjob.failure import JobFailure, Reason

LENGTHS = [3, 7, 1, 6]
STARTS = torch.tensor([0, 3, 10, 11, 17], dtype=torch.int32)


class Layer(torch.nn.Module):
    is_causal = True


def _heads(heads: int, *, size: int = 8) -> torch.Tensor:
    return torch.randn(1, heads, sum(LENGTHS), size, generator=torch.Generator().manual_seed(heads))


@pytest.mark.parametrize("window", [None, 1, 3, 4, 100])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_a_query_sees_its_own_document_up_to_itself_within_the_window(window: int | None, key_heads: int) -> None:
    query, key, value = _heads(4), _heads(key_heads), _heads(key_heads, size=5)
    document = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    place = torch.arange(17)
    distance = place[:, None] - place[None, :]
    seen = (document[:, None] == document[None, :]) & (distance >= 0) & (distance < (window or 1000))
    scores = query @ key.repeat_interleave(4 // key_heads, dim=1).mT * 0.4
    expected = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value.repeat_interleave(4 // key_heads, dim=1)

    attended, weights = packed_attention(
        Layer(), query, key, value, None, scaling=0.4, sliding_window=window, cu_seq_lens_q=STARTS
    )
    assert weights is None
    torch.testing.assert_close(attended, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [False, True])
def test_softcapped_scores_and_sinks_take_part_in_the_softmax(
    window: int | None, softcap: float | None, sinks: bool
) -> None:
    query, key, value = _heads(4), _heads(2), _heads(2, size=5)
    sinks_of_heads = torch.tensor([-1.0, 0.0, 1.0, 2.0]) if sinks else None
    expected = []
    for start, end in itertools.pairwise(STARTS.tolist()):
        for place in range(start, end):
            first = max(start, place + 1 - (window or 1000))
            for head in range(4):
                scores = 0.4 * key[0, head // 2, first : place + 1] @ query[0, head, place]
                scores = scores if softcap is None else softcap * (scores / softcap).tanh()
                weights = scores.exp()
                total = weights.sum() + (sinks_of_heads[head].exp() if sinks else 0.0)
                expected.append(weights @ value[0, head // 2, first : place + 1] / total)

    attended, _ = packed_attention(
        Layer(), query, key, value, None, scaling=0.4, sliding_window=window, softcap=softcap, s_aux=sinks_of_heads,
        cu_seq_lens_q=STARTS,
    )  # fmt: skip
    torch.testing.assert_close(attended[0], torch.stack(expected).view(17, 4, 5), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("capability", "path"), [(7, "_by_document"), (8, "_on_gpu"), (9, "_on_gpu")])
def test_a_gpu_from_before_ampere_takes_document_by_document(
    capability: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for name in ("_by_document", "_on_gpu"):
        monkeypatch.setattr(attention, name, lambda query, *_, name=name: (taken.append(name), query)[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=capability, minor=5))
    with FakeTensorMode():
        heads = torch.empty(1, 4, 17, 8, dtype=torch.bfloat16, device="cuda")
        packed_attention(Layer(), heads, heads, heads, None, cu_seq_lens_q=STARTS)
    assert taken == [path]


@pytest.mark.parametrize("scaling", [None, 0.4])
@pytest.mark.parametrize(("size", "value_size"), [(12, 12), (20, 12), (12, 20), (16, 16), (16, 8)])
def test_heads_of_any_size_fit_the_kernel_of_a_gpu(
    size: int, value_size: int, scaling: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(query, key, value, starts, _starts, _longest, _most, **options: Any) -> tuple[torch.Tensor]:
        assert query.shape[-1] == key.shape[-1] == value.shape[-1]
        assert query.shape[-1] % 8 == 0
        return (attention._by_document(query, key, value, starts, options["scale"], None, None, None),)

    monkeypatch.setattr(attention, "_flash_attention", kernel)
    results = []
    for path in (lambda *given: attention._on_gpu(*given), lambda *given: attention._by_document(*given, None, None)):
        inputs = [_heads(4, size=size), _heads(2, size=size), _heads(2, size=value_size)]
        inputs = [heads[0].transpose(0, 1).requires_grad_() for heads in inputs]
        attended = path(*inputs, STARTS, scaling, None)
        assert attended.shape == (17, 4, value_size)
        attended.square().sum().backward()
        results.append([attended.detach(), *(heads.grad for heads in inputs)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


def test_keys_of_another_length_and_layers_that_hide_the_borders_are_refused() -> None:
    query, key = _heads(4), _heads(2)
    with pytest.raises(JobFailure, match=r"^model: Layer needs other keys than one a token in its attention"):
        packed_attention(Layer(), query, key[:, :, :4], key[:, :, :4], None, cu_seq_lens_q=STARTS)
    with pytest.raises(JobFailure, match=r"^model: Layer is not told by its layers where documents begin; use another"):
        packed_attention(Layer(), query, key, key, None)


@pytest.mark.parametrize(
    "argument",
    [
        {"position_bias": torch.zeros(4)},
        {"dropout": 0.1},
        {"is_causal": False},
        {"attention_mask": torch.ones(1, 1, 17, 17)},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_arithmetic_that_it_does_not_have_is_refused_by_name(argument: dict) -> None:
    query, key = _heads(4), _heads(2)
    arguments = {"attention_mask": None, "cu_seq_lens_q": STARTS} | argument
    with pytest.raises(JobFailure, match=next(iter(argument))) as caught:
        packed_attention(Layer(), query, key, key, **arguments)
    assert caught.value.reason is Reason.INVALID_CONFIGURATION


def test_what_the_library_hands_to_every_attention_is_accepted() -> None:
    query, key = _heads(4), _heads(2)
    plain, _ = packed_attention(Layer(), query, key, key, None, cu_seq_lens_q=STARTS)
    told, _ = packed_attention(
        Layer(),
        query,
        key,
        key,
        None,
        cu_seq_lens_q=STARTS,
        cu_seq_lens_k=STARTS,
        seq_idx=torch.zeros(1, 17),
        position_ids=torch.zeros(1, 17),
        use_cache=False,
        softcap=None,
        output_attentions=False,
        dropout=0.0,
    )
    assert torch.equal(plain, told)
