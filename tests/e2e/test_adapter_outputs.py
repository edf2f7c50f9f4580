"""`sft run` of a job with LoRA: both formats of one run's outputs, judged by peft alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.local_run import LocalRun, job, kill
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM


@pytest.fixture
def run(tmp_path: Path, smollm2: Path, chats: Path) -> Iterator[LocalRun]:
    """Of a random model of 3 million parameters, on two ranks."""
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "base")
    training = {"totalStep": 4, "lora": {"rank": 4, "dora": True}, "optimizer": {"lr": 1e-2}}
    manifest: dict[str, Any] = job(
        tokenizer=smollm2.as_uri(), data=chats.as_uri(), training=training, checkpoint={"everySteps": 1}
    )
    manifest["spec"]["model"] = {
        "loadFrom": {"uri": (tmp_path / "base").as_uri()},
        "tokenizer": {"uri": smollm2.as_uri()},
    }
    manifest["spec"]["output"].append({"uri": "pvc://results/adapter", "format": "adapter"})
    run = LocalRun(tmp_path / "run", manifest)
    yield run
    run.stop()


def _assert_outputs_agree(run: LocalRun, smollm2: Path) -> None:
    told = {artifact["uri"]: artifact["format"] for artifact in run.status()["artifacts"]}
    assert told == {"pvc://results/model": "hf", "pvc://results/adapter": "adapter"}
    # By the path of the base that the adapter's folder names.
    adapted = AutoPeftModelForCausalLM.from_pretrained(run.folder / "adapter").merge_and_unload().state_dict()
    merged = AutoModelForCausalLM.from_pretrained(run.folder / "model").state_dict()
    base = AutoModelForCausalLM.from_pretrained(run.folder.parent / "base").state_dict()
    assert adapted.keys() == merged.keys() == base.keys()
    assert [name for name in merged if not torch.equal(adapted[name], merged[name])] == []
    assert len([name for name in merged if not torch.equal(base[name], merged[name])]) == 2 * 7
    text = [{"role": "user", "content": "hello"}]
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (run.folder / "adapter", smollm2))
    assert ours.apply_chat_template(text)["input_ids"] == theirs.apply_chat_template(text)["input_ids"]


def test_an_adapter_and_the_merged_model_come_out_of_one_run_of_two_ranks(run: LocalRun, smollm2: Path) -> None:
    run.start().succeed()
    _assert_outputs_agree(run, smollm2)


@pytest.mark.full
def test_they_come_out_too_where_a_rank_was_killed(run: LocalRun, smollm2: Path) -> None:
    run.start()
    run.until_step(2)
    kill(run.rank(1))
    run.succeed()
    last, _ = run.status()["attempts"]["history"]
    assert last["resumedFrom"] >= 1
    _assert_outputs_agree(run, smollm2)
