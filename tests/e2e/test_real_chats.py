"""SmolLM2 fine-tuned on real chats: the exported folder, judged by transformers alone on chats that it never saw."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.held_out import assistant_loss
from e2e.local_run import LocalRun
from transformers import AutoModelForCausalLM

from examples.tickets import tickets

TRAINED_ROWS, HELD_OUT_ROWS = 64, 25


@pytest.fixture(scope="module")
def rows(chat_data: Path | None) -> list[dict[str, Any]]:
    if chat_data is None:
        return list(tickets(TRAINED_ROWS + HELD_OUT_ROWS, seed=3))
    found = [json.loads(line) for line in chat_data.read_text().splitlines()]
    assert len(found) >= TRAINED_ROWS + HELD_OUT_ROWS, f"--chat-data: {chat_data} has too few chats"
    return found


def job(model: Path, data: Path, *, lr: float, **training: Any) -> dict[str, Any]:
    return {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {"name": "real-chats"},
        "spec": {
            "model": {"loadFrom": {"uri": f"file://{model}"}},
            "data": {"datasets": [{"name": "chats", "uri": f"file://{data}"}], "packing": {"maxLength": 512}},
            "training": {"optimizer": {"lr": lr}, "lrSchedule": {"lrMin": min(lr, 1e-6)}} | training,
            "output": [{"uri": "pvc://results/model"}],
        },
    }


def test_an_epoch_on_64_chats_lowers_the_loss_on_unseen_ones_by_0_3_nats(
    tmp_path: Path, smollm2: Path, rows: list[dict[str, Any]]
) -> None:
    data = tmp_path / "trained.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:TRAINED_ROWS]))
    held_out = rows[TRAINED_ROWS : TRAINED_ROWS + HELD_OUT_ROWS]
    before = assistant_loss(smollm2, held_out)
    run = LocalRun(tmp_path / "run", job(smollm2, data, lr=5e-5))
    run.start().wait()
    assert run.status()["phase"] == "Succeeded", run.log
    after = assistant_loss(run.folder / "model", held_out)
    print(f"held-out assistant loss {before:.3f} -> {after:.3f}")
    assert after <= before - 0.3

    _, info = AutoModelForCausalLM.from_pretrained(run.folder / "model", output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}


@pytest.mark.full
def test_with_a_learning_rate_of_zero_weights_and_loss_stay(
    tmp_path: Path, smollm2: Path, rows: list[dict[str, Any]]
) -> None:
    data = tmp_path / "trained.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    run = LocalRun(tmp_path / "run", job(smollm2, data, lr=0, totalStep=2))
    run.start().succeed()
    before = AutoModelForCausalLM.from_pretrained(smollm2).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run.folder / "model").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert assistant_loss(run.folder / "model", rows[5:7]) == assistant_loss(smollm2, rows[5:7])
