"""Documents side by side, against a mask written out by hand."""

import pytest
import torch

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


@pytest.mark.parametrize(
    "argument",
    [
        {"softcap": 50.0},
        {"s_aux": torch.zeros(4)},
        {"dropout": 0.1},
        {"is_causal": False},
        {"attention_mask": torch.ones(1, 1, 17, 17)},
        {"invented": 1},
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
