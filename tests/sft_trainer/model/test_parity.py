"""Ours against transformers' own attention and loss on each document alone, in fp32."""

from pathlib import Path

import pytest
import tiny_models as tiny
import torch
import torch.nn.functional as F

from sft_trainer.model.probe import probe
from sft_trainer.packed import PackedBatch
from sftjob.options import CELossConfig, FSDPConfig

LENGTHS = [9, 13, 4, 11]
HAS_EXPERTS = {"qwen3_moe", "mixtral", "ernie4_5_moe", "gpt_oss"}


@pytest.fixture(params=tiny.MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(name: str, tmp_path: Path) -> str:
    return tiny.save_random_model(tmp_path / name, name)


def test_logits_and_every_gradient_of_a_pack_equal_transformers_on_each_document_alone(folder: str) -> None:
    texts = tiny.documents(LENGTHS)
    oracle = tiny.transformers_model(folder)
    alone = [oracle(input_ids=text.unsqueeze(0), use_cache=False).logits[0] for text in texts]
    expected_loss = sum(
        F.cross_entropy(logits, tiny.next_tokens(text), ignore_index=-100, reduction="sum")
        for logits, text in zip(alone, texts, strict=True)
    )
    expected_loss.backward()

    model = tiny.built(folder)
    logits = model(tiny.pack(texts), output="logits")[0]
    loss = model(tiny.pack(texts))
    loss.backward()

    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    expected = tiny.gradients(oracle)
    ours = tiny.gradients(model)
    assert ours.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(
            ours[parameter], gradient, atol=1e-4, rtol=1e-4, msg=lambda m, p=parameter: f"{p}: {m}"
        )


def test_another_document_in_the_pack_changes_no_bit_of_a_later_one(folder: str, name: str) -> None:
    first, second = tiny.documents([9, 13])
    model = tiny.built(folder)
    with torch.no_grad():
        before = model(tiny.pack([first, second]), output="logits")[0]
        after = model(tiny.pack([(first + 1) % tiny.VOCAB_SIZE, second]), output="logits")[0]
    assert not torch.allclose(before[:9], after[:9], atol=1e-3)
    # The experts' grouped products change with the sizes of the groups.
    torch.testing.assert_close(after[9:], before[9:], rtol=0, atol=1e-6 if name in HAS_EXPERTS else 0)


def test_the_probe_accepts_the_model_and_leaves_it_as_it_was(folder: str) -> None:
    model = tiny.built(folder)
    batch = tiny.pack(tiny.documents(LENGTHS))
    before = model(batch)
    random_state = torch.get_rng_state()
    probe(model, vocab_size=tiny.VOCAB_SIZE)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(model(batch), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_pack_without_a_trained_token_gives_zero_and_zero_gradients_everywhere(tmp_path: Path) -> None:
    for mode in ("chunk", "eager"):
        folder = tiny.save_random_model(tmp_path / mode, "qwen3_moe")
        model = tiny.built(folder, loss_cfg=CELossConfig(mode=mode))
        loss = model(tiny.pack(tiny.documents(LENGTHS), trained=False))
        loss.backward()
        assert loss.item() == 0.0
        for name, gradient in tiny.gradients(model).items():
            assert gradient is not None, name
            assert not gradient.any(), name


def test_bf16_without_a_mesh_keeps_parameters_and_gradients_in_fp32(tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, "qwen3_tied")
    batch = tiny.pack(tiny.documents(LENGTHS))
    exact = tiny.built(folder)(batch)
    model = tiny.built(folder, precision="bf16")
    probe(model, vocab_size=tiny.VOCAB_SIZE)
    loss = model(batch)
    loss.backward()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {gradient.dtype for gradient in tiny.gradients(model).values()} == {torch.float32}
    assert loss.item() != exact.item()
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)


def test_experts_in_bf16_without_a_mesh_are_those_of_weights_in_bf16(tmp_path: Path) -> None:
    """As FSDP2's mixed precision has them; the weights themselves, and their gradients, stay fp32."""
    folder = tiny.save_random_model(tmp_path, "qwen3_moe")
    model = tiny.built(folder, precision="bf16")
    probe(model, vocab_size=tiny.VOCAB_SIZE)
    experts = next(module for module in model.modules() if module.__class__.__name__ == "Qwen3MoeExperts")
    width = experts.gate_up_proj.shape[-1]
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, width, generator=generator)
    chosen = torch.randint(experts.num_experts, (7, 2), generator=generator)
    shares = torch.rand(7, 2, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = experts(hidden, chosen, shares)
    expected = torch.zeros(7, width)
    for token in range(7):
        for share, expert in zip(shares[token], chosen[token].tolist(), strict=True):
            gate, up = (experts.gate_up_proj[expert].bfloat16() @ hidden[token].bfloat16()).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            expected[token] += share * (experts.down_proj[expert].bfloat16() @ inner).float()
    # One rounding to bf16 apart, where the product in fp32 is some.
    torch.testing.assert_close(ours, expected, rtol=2**-8, atol=1e-5)
    assert (ours - experts(hidden, chosen, shares)).abs().max() > 1e-4
    ours.sum().backward()
    assert experts.gate_up_proj.grad.dtype == experts.down_proj.grad.dtype == torch.float32


def test_compiled_layers_give_the_same_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled, batch = _plain_and_compiled(tmp_path, monkeypatch)
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch), plain(batch), atol=1e-5, rtol=1e-5)
    assert any((tmp_path / "inductor").rglob("*.so"))


@pytest.mark.full
def test_compiled_layers_give_the_same_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled, batch = _plain_and_compiled(tmp_path, monkeypatch)
    for model in (plain, compiled):
        model(batch).backward()
    for name, gradient in tiny.gradients(plain).items():
        torch.testing.assert_close(tiny.gradients(compiled)[name], gradient, atol=1e-4, rtol=1e-4)


def _plain_and_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.nn.Module, torch.nn.Module, PackedBatch]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    folder = tiny.save_random_model(tmp_path / "m", "llama", num_hidden_layers=1)
    compiled = tiny.built(folder, fsdp_cfg=FSDPConfig(torch_compile=True))
    probe(compiled, vocab_size=tiny.VOCAB_SIZE)
    return tiny.built(folder), compiled, tiny.pack(tiny.documents(LENGTHS))
