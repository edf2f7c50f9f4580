"""Models that can't be trained on packs are refused at load, each by the property that does not hold."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny

from sft_trainer.model import FolderConfig, forward
from sft_trainer.model.probe import probe
from sftjob.failure import JobFailure, Reason

COMMON = tiny.config_fields("llama")


def _refusal(model_type: str, **fields: Any) -> str:
    config = FolderConfig(folder="", fields=COMMON | {"model_type": model_type} | fields)
    with pytest.raises(JobFailure) as caught:
        probe(tiny.built(None, config=config), vocab_size=tiny.VOCAB_SIZE)
    assert caught.value.reason is Reason.INVALID_CONFIGURATION
    return caught.value.message


def test_a_window_that_exists_in_the_mask_alone_is_found_though_it_is_longer_than_the_probe() -> None:
    message = _refusal("phimoe", num_local_experts=2, sliding_window=2047)
    assert message.startswith("model: phimoe can't be trained here: the logits of packed documents differ")


def test_a_state_that_runs_over_the_border_of_documents_is_found() -> None:
    message = _refusal("minimax", num_local_experts=2)
    assert message.startswith("model: minimax can't be trained here: a change in one document")


def test_attention_that_is_not_replaced_is_found() -> None:
    assert _refusal("bloom").startswith("model: bloom can't be trained here: a change in one document")
    message = _refusal("gpt_neo", attention_types=[[["global", "local"], 1]])
    assert message.startswith("model: gpt_neo can't be trained on packs: its attention can't be replaced by one that")


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("doge", "DogeAttention needs attention_mask in its attention"),
        ("stablelm", "StableLmAttention is not told by its layers where documents begin"),
        ("mpt", "mpt can't be trained here: its forward fails on packed documents (AttributeError: "),
        ("llama4_text", "llama4_text can't be trained on packs: it is not made of layers under a base model"),
    ],
)
def test_arithmetic_that_packs_do_not_have_is_refused_by_name(model_type: str, expected: str) -> None:
    assert expected in _refusal(model_type, num_local_experts=2)


@pytest.mark.parametrize(
    ("name", "field"),
    [("llama", "attention_dropout"), ("gpt2", "attn_pdrop"), ("biogpt", "attention_probs_dropout_prob")],
)
def test_attention_dropout_is_refused_in_training_with_the_field_to_set(name: str, field: str, tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, "gpt2", model_type=name, **{"attn_pdrop": 0.0, field: 0.1})
    with pytest.raises(JobFailure, match=rf"needs dropout in its attention.*set {field} to 0 in config\.json"):
        tiny.built(folder)(tiny.pack(tiny.documents([9])))


def test_a_loss_that_is_not_that_of_the_models_own_logits_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = forward.summed_cross_entropy
    monkeypatch.setattr(forward, "summed_cross_entropy", lambda *args, **kwargs: exact(*args, **kwargs) * 1.001)
    model = tiny.built(tiny.save_random_model(tmp_path, "llama"))
    with pytest.raises(JobFailure, match=r"llama can't be trained here: the loss is .* where that of the model's own"):
        probe(model, vocab_size=tiny.VOCAB_SIZE)


def test_arithmetic_after_the_head_that_is_left_out_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "head_arithmetic", lambda model: forward.HeadArithmetic())  # noqa: ARG005
    for name in ("granite", "cohere", "gemma3_text"):
        model = tiny.built(tiny.save_random_model(tmp_path / name, name))
        with pytest.raises(JobFailure, match="the logits of packed documents differ"):
            probe(model, vocab_size=tiny.VOCAB_SIZE)
