"""The GPU's path for softcaps and sinks, run on a CPU: FlexAttention's own arithmetic in place of its kernels."""

import itertools
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from torch.nn.attention import flex_attention as torchs

from sft_trainer.model import attention, flex
from sft_trainer.model.attention import packed_attention
from sft_trainer.model.probe import probe

# More than two blocks of 128, borders within and at the ends of blocks, one token alone, pads at the end.
LENGTHS = [70, 58, 1, 150, 33]
TOKENS = sum(LENGTHS)
STARTS = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
DOCUMENTS = torch.repeat_interleave(torch.arange(len(LENGTHS), dtype=torch.int32), torch.tensor(LENGTHS))

WINDOWS = ["sliding_attention", "full_attention"] * 2


class Layer(torch.nn.Module):
    is_causal = True


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no kernels for a backward there, and refuses; its written-out arithmetic has one."""
    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "_compiled", lambda: flex.flex_attention)
    monkeypatch.setattr(attention, "_FLEX_DEVICES", ("cpu",))


def _seen(window: int | None) -> torch.Tensor:
    place = torch.arange(TOKENS)
    behind = place[:, None] - place[None, :]
    return (DOCUMENTS[:, None] == DOCUMENTS[None, :]) & (behind >= 0) & (behind < (window or TOKENS))


@pytest.mark.parametrize("window", [None, 1, 100, 129, 200])
def test_the_mask_is_that_of_documents_and_window_and_leaves_out_blocks(window: int | None) -> None:
    mask = flex.block_mask(DOCUMENTS, window=window)
    place = torch.arange(TOKENS)
    assert torch.equal(mask.mask_mod(0, 0, place[:, None], place[None, :]), _seen(window))
    exact = torchs.create_block_mask(mask.mask_mod, None, None, TOKENS, TOKENS, device="cpu")
    seen, expected = mask.to_dense()[0, 0].bool(), exact.to_dense()[0, 0].bool()
    # All that is seen is visited; of the three rows of three blocks those above the diagonal never.
    assert not (expected & ~seen).any()
    assert seen.sum() <= 6
    if window == 1:
        assert seen.sum() == 3
    whole = torch.zeros(3, 3, dtype=torch.bool)
    for row in range(3):
        whole[row, mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]]] = True
    pairs = torch.nn.functional.pad(_seen(window), (0, 384 - TOKENS, 0, 384 - TOKENS)).unfold(0, 128, 128)
    pairs = pairs.unfold(1, 128, 128).all(-1).all(-1)
    assert not (whole & ~pairs).any()


def test_a_long_document_has_blocks_without_a_mask() -> None:
    mask = flex.block_mask(torch.zeros(512, dtype=torch.int32), window=300)
    # Of four rows: what lies one block behind is within 300 tokens in whole, two and three behind in part.
    assert mask.full_kv_num_blocks.flatten().tolist() == [0, 1, 1, 1]
    assert mask.kv_num_blocks.flatten().tolist() == [1, 1, 2, 3]


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("softcap", "sinks"), [(1.5, False), (None, True), (1.5, True)])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_values_and_gradients_are_those_of_the_written_out_form(
    window: int | None, softcap: float | None, sinks: bool, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(key_heads)
    # Values are narrower than keys.
    shapes = [(1, 4, TOKENS, 24), (1, key_heads, TOKENS, 24), (1, key_heads, TOKENS, 16)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    drawn.append(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    weights = torch.randn(1, TOKENS, 4, 16, generator=generator)
    masks = {window: flex.block_mask(DOCUMENTS, window=window)}
    calls: list[int] = []
    kernel = attention.flex
    monkeypatch.setattr(attention, "flex", lambda *a, **k: (calls.append(1), kernel(*a, **k))[1])

    results = []
    for block_masks in (masks, None):
        query, key, value, sinks_of_heads = (tensor.clone().requires_grad_() for tensor in drawn)
        attended, _ = packed_attention(
            Layer(), query, key, value, None, scaling=0.3, sliding_window=window, softcap=softcap,
            s_aux=sinks_of_heads if sinks else None, cu_seq_lens_q=STARTS, block_masks=block_masks,
        )  # fmt: skip
        (attended * weights).sum().backward()
        results.append([attended.detach(), query.grad, key.grad, value.grad, *([sinks_of_heads.grad] if sinks else [])])
    assert calls == [1]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "compiled"),
    [("gemma2", False), ("gemma2", True), ("gpt_oss", False), pytest.param("gpt_oss", True, marks=pytest.mark.full)],
)
def test_a_models_layers_share_one_mask_a_window_and_give_the_numbers_of_the_written_out_form(
    case: str, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save_random_model(tmp_path, case, head_dim=16, num_hidden_layers=4, layer_types=WINDOWS)
    torch.compiler.reset()
    made: list[int | None] = []
    make, kernel = attention.block_mask, attention.flex
    calls: list[int] = []

    def noted_mask(documents: torch.Tensor, *, window: int | None) -> object:
        made.append(window)
        return make(documents, window=window)

    monkeypatch.setattr(attention, "block_mask", noted_mask)
    if not compiled:
        monkeypatch.setattr(attention, "flex", lambda *a, **k: (calls.append(1), kernel(*a, **k))[1])
    model = tiny.built(folder)
    if compiled:
        for layer in model.model.layers:
            layer.compile(backend="aot_eager", fullgraph=case == "gemma2")
    probe(model, vocab_size=tiny.VOCAB_SIZE)
    made.clear()
    calls.clear()
    results = []
    for lengths in ([9, 13], [5, 11, 6]):
        loss = model(tiny.pack(tiny.documents(lengths)))
        loss.backward()
        results.append(loss.detach())
    assert sorted(made, key=str) == [5, 5, None, None]
    assert len(calls) == (0 if compiled else 2 * 4)
    gradients = tiny.gradients(model)

    monkeypatch.setattr(attention, "_FLEX_DEVICES", ())
    written_out = tiny.built(folder)
    for lengths, found in zip(([9, 13], [5, 11, 6]), results, strict=True):
        loss = written_out(tiny.pack(tiny.documents(lengths)))
        loss.backward()
        torch.testing.assert_close(found, loss.detach(), rtol=1e-5, atol=0)
    for name, gradient in tiny.gradients(written_out).items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
