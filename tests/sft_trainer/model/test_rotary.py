"""Rotary positions that follow the longest document of a pack: taken where no pack is that long, refused elsewhere."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch

from sft_trainer.model import FolderConfig
from sft_trainer.model.probe import probe
from sft_trainer.model.rotary import refuse_packs_beyond_rotary_limit
from sft_trainer.run import RunOptions
from sftjob.failure import JobFailure, Reason
from tests.sft_trainer.train.small_run import VOCAB_SIZE, SmallRun

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
MODELS: dict[str, dict[str, Any]] = {
    "longrope": {"rope_parameters": LONGROPE},
    "dynamic": {"rope_parameters": DYNAMIC, "max_position_embeddings": 16},
}


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_pack_longer_than_the_length_from_which_frequencies_change_is_refused(kind: str, tmp_path: Path) -> None:
    model = tiny.built(tiny.save_random_model(tmp_path, "llama", **MODELS[kind]))
    probe(model, vocab_size=tiny.VOCAB_SIZE)
    with pytest.raises(JobFailure) as caught:
        refuse_packs_beyond_rotary_limit(model, pack_tokens=17, level="soft")
    assert caught.value.reason is Reason.INVALID_CONFIGURATION
    expected = {
        "longrope": "spec.data.packing.maxLength: 17 is more than the original_max_position_embeddings of 16 of this "
        "llama model, beyond which its rotary positions (longrope) depend on the longest document of a pack; use at "
        "most 16, or spec.data.packing.level: none",
        "dynamic": "spec.data.packing.maxLength: 17 is more than the max_position_embeddings of 16 of this llama "
        "model, beyond which its rotary positions (dynamic) depend on the longest document of a pack; use at most 16",
    }
    assert caught.value.message == expected[kind]


def test_a_pack_of_that_length_is_taken_and_exact(kind: str, tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, "llama", **MODELS[kind])
    model, oracle = tiny.built(folder), tiny.transformers_model(folder)
    refuse_packs_beyond_rotary_limit(model, pack_tokens=16, level="soft")
    for lengths in ([16], [11, 5]):
        texts = tiny.documents(lengths)
        with torch.no_grad():
            ours = model(tiny.pack(texts), output="logits")[0]
            alone = [oracle(input_ids=text.unsqueeze(0), use_cache=False).logits[0] for text in texts]
        torch.testing.assert_close(ours, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_without_packing_a_longrope_model_is_exact_at_any_length(tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, "llama", **MODELS["longrope"])
    model, oracle = tiny.built(folder), tiny.transformers_model(folder)
    refuse_packs_beyond_rotary_limit(model, pack_tokens=64, level="none")
    for [text] in (tiny.documents([40]), tiny.documents([10])):
        with torch.no_grad():
            ours = model(tiny.pack([text]), output="logits")[0]
            alone = oracle(input_ids=text.unsqueeze(0), use_cache=False).logits[0]
        torch.testing.assert_close(ours, alone, atol=1e-5, rtol=1e-5)
    dynamic = tiny.built(tiny.save_random_model(tmp_path / "dynamic", "llama", **MODELS["dynamic"]))
    with pytest.raises(JobFailure, match=re.escape("(dynamic) depend on")):
        refuse_packs_beyond_rotary_limit(dynamic, pack_tokens=64, level="none")


def test_one_kind_of_layers_with_such_positions_is_enough(tmp_path: Path) -> None:
    kinds = {"sliding_attention": PLAIN, "full_attention": LONGROPE}
    model = tiny.built(tiny.save_random_model(tmp_path, "gemma3_text", rope_parameters=kinds))
    refuse_packs_beyond_rotary_limit(model, pack_tokens=16, level="soft")
    with pytest.raises(JobFailure, match=re.escape("(longrope) depend on the longest document")):
        refuse_packs_beyond_rotary_limit(model, pack_tokens=17, level="soft")


def test_an_older_config_that_names_them_rope_scaling_is_understood() -> None:
    older = {key: value for key, value in LONGROPE.items() if not key.startswith(("rope", "original"))}
    fields = tiny.config_fields("llama", model_type="phi3", rope_scaling=older | {"type": "longrope"})
    model = tiny.built(None, config=FolderConfig("", fields | {"original_max_position_embeddings": 16}))
    refuse_packs_beyond_rotary_limit(model, pack_tokens=16, level="soft")
    with pytest.raises(JobFailure, match="17 is more than the original_max_position_embeddings of 16 of this phi3"):
        refuse_packs_beyond_rotary_limit(model, pack_tokens=17, level="soft")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_other_positions_know_no_such_limit(name: str, tmp_path: Path) -> None:
    refuse_packs_beyond_rotary_limit(
        tiny.built(tiny.save_random_model(tmp_path, name)), pack_tokens=100_000, level="soft"
    )


class LongropeRun(SmallRun):
    def options(self) -> RunOptions:
        fields = tiny.config_fields("llama", vocab_size=VOCAB_SIZE, **MODELS["longrope"])
        return replace(super().options(), model_cfg=FolderConfig("", fields))


def test_a_run_with_such_packs_ends_before_anything_is_trained(tmp_path: Path) -> None:
    run = LongropeRun(tmp_path / "run")
    with pytest.raises(JobFailure, match="96 is more than the original_max_position_embeddings of 16 of this llama"):
        run.go()
    assert run.checkpoints() == []


class PlainRun(SmallRun):
    positions = 16
    rope = PLAIN

    def options(self) -> RunOptions:
        rotary = {"max_position_embeddings": self.positions, "rope_parameters": self.rope}
        fields = tiny.config_fields("llama", vocab_size=VOCAB_SIZE, **rotary)
        return replace(super().options(), model_cfg=FolderConfig("", fields))


@pytest.mark.parametrize(
    ("positions", "rope", "warns"),
    [
        (16, PLAIN, True),
        (96, PLAIN, False),
        (16, PLAIN | {"rope_type": "yarn", "factor": 6.0, "original_max_position_embeddings": 16}, False),
        (16, PLAIN | {"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 16}, True),
    ],
)
def test_a_sample_beyond_the_positions_that_a_model_has_learnt_is_trained_with_a_word_of_it(
    positions: int, rope: dict[str, Any], warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = PlainRun(tmp_path / "run", total_steps=1)
    run.positions, run.rope = positions, rope
    run.go()
    assert run.checkpoints() == [1]
    limit = 24 if rope.get("factor") == 1.5 else 16
    told = (
        f"spec.data.packing.maxLength: the longest sample has 41 tokens, more than the {limit} that this llama model "
        "is made for (max_position_embeddings): the positions behind are new to it"
    )
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line for line in said if "longest sample" in line] == ([told] if warns else [])
