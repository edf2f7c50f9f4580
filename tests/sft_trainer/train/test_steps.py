"""Optimiser steps against a plain loop of transformers and torch: however a step's samples are spread, they are one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from small_run import EVALUATED, TRAINED, VOCAB_SIZE, SmallRun
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from sft_trainer.model.forward import PackForward
from sft_trainer.packed import PackedBatch
from sft_trainer.train import loop
from sft_trainer.train.world import World

STEPS, RATE = 4, 3e-3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=40960, rope_theta=1e6, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_one_pack_many_packs_and_two_ranks_take_the_steps_of_a_plain_loop(base: Path, tmp_path: Path) -> None:
    whole = SmallRun(tmp_path / "whole", pack_tokens=2048, batch=1, load_from=base, lr=RATE, total_steps=STEPS)
    accumulated = whole.another("accumulated", packing="none", batch=len(TRAINED))
    two = accumulated.another("two")
    for run in (whole, accumulated):
        run.go()
    two.options()
    mp.spawn(_one_of_two, args=(two, tmp_path), nprocs=2)
    two.attempts = 1

    losses, norms, weights = plain_loop(base, whole.folder / "tokenizer")
    # Every norm is above 1, so that every gradient is scaled.
    assert min(norms) > 1
    for run in (whole, accumulated, two):
        lines = run.lines()
        assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-6)
        assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-5)
        ours = load_file(run.exported / "model.safetensors")
        for name, tensor in ours.items():
            # A step moves a weight by up to 3e-3, also where its gradient is hardly more than its rounding.
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=3e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_compiled_model_gets_samples_alone_with_few_pads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    forward = PackForward.__call__

    def noted(self: PackForward, model: torch.nn.Module, batch: PackedBatch, **options: Any) -> torch.Tensor:
        lengths.append(batch.input_ids.shape[1])
        return forward(self, model, batch, **options)

    run = SmallRun(tmp_path / "none", packing="none", pack_tokens=1024, batch=2, total_steps=2)
    run.evaluation = {"every_steps": 2}
    plain = run.another("plain")
    plain.go()
    monkeypatch.setattr(loop, "compiles", lambda *_: True)
    monkeypatch.setattr(PackForward, "__call__", noted)
    run.go()
    # All of these chats are shorter; the probe's documents have lengths of their own.
    assert set(lengths[-(2 * 2 + len(EVALUATED)) :]) == {128}
    losses, expected = ([line["loss"] for line in of.lines() if "loss" in line] for of in (run, plain))
    assert losses == pytest.approx(expected, rel=1e-5)


def plain_loop(base: Path, tokenizer_folder: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, norms of the gradients, and the weights in the end; each chat alone in a forward of its own."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").train()
    chats = [labelled(AutoTokenizer.from_pretrained(tokenizer_folder), chat) for chat in TRAINED]
    trained_tokens = sum(int((labels != -100).sum()) for _, labels in chats)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    losses, norms = [], []
    for _ in range(STEPS):
        loss = torch.zeros(())
        for ids, labels in chats:
            logits = model(ids.unsqueeze(0)).logits[0, :-1]
            one = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum") / trained_tokens
            one.backward()
            loss += one.detach()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms, model.state_dict()


def labelled(tokenizer: AutoTokenizer, chat: list[dict[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Its tokens, and those of the answer with its end alone as labels."""
    start = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
    whole = f"{start}{chat[1]['content']}<|eot_id|>"
    first, ids = (
        tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0] for text in (start, whole)
    )
    labels = ids.clone()
    labels[: len(first)] = -100
    return ids, labels


def _one_of_two(rank: int, run: SmallRun, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    run.go(world=World(rank=rank, size=2, device=torch.device("cpu"), mesh=init_device_mesh("cpu", (2,))))
    dist.destroy_process_group()
