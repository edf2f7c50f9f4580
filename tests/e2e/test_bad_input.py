"""What a wrong file or field gets from `sft run`: one message with place and remedy, its exit code, no second try."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.local_run import LocalRun
from transformers import AutoConfig, AutoModelForCausalLM

GOOD = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}


def broken_json(run: LocalRun, _: Path) -> None:
    write_chats(run, json.dumps(GOOD) + '\n{"messages": [\n')


def unknown_role(run: LocalRun, _: Path) -> None:
    write_chats(run, json.dumps({"messages": [{"role": "robot", "content": "Hi"}]}) + "\n")


def nothing_trained(run: LocalRun, _: Path) -> None:
    write_chats(run, json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")


def empty_file(run: LocalRun, _: Path) -> None:
    write_chats(run, "")


def missing_model(run: LocalRun, _: Path) -> None:
    run.manifest["spec"]["model"] = {"loadFrom": {"uri": f"file://{run.folder}/nowhere"}}


def truncated_weights(run: LocalRun, smollm2: Path) -> None:
    model = run.folder / "torn"
    model.mkdir(parents=True)
    for path in smollm2.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, model)
    with (smollm2 / "model.safetensors").open("rb") as weights:
        (model / "model.safetensors").write_bytes(weights.read(1_000_000))
    run.manifest["spec"]["model"] = {"loadFrom": {"uri": f"file://{model}"}}


def leaking_architecture(run: LocalRun, smollm2: Path) -> None:
    """A type from docs/architectures.md whose attention is not replaceable: documents of a pack see each other."""
    fields = {"vocab_size": 49152, "hidden_size": 16, "n_layer": 1, "n_head": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **fields))
    model.save_pretrained(run.folder / "bloom")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (smollm2 / name).exists():
            shutil.copy(smollm2 / name, run.folder / "bloom")
    run.manifest["spec"]["model"] = {"loadFrom": {"uri": f"file://{run.folder}/bloom"}}


def too_many_processes(run: LocalRun, _: Path) -> None:
    run.manifest["spec"]["compute"] = {"processesPerNode": 64}
    run.manifest["spec"]["training"] = {"totalStep": 1, "globalBatchSize": 64}


def packed_base_without_gpu(run: LocalRun, smollm2: Path) -> None:
    run.manifest["spec"]["model"] = {"loadFrom": {"uri": f"file://{smollm2}"}}
    run.manifest["spec"]["training"] = {"totalStep": 1, "lora": {"quantize": "nf4"}}


def wrong_fields(run: LocalRun, _: Path) -> None:
    run.manifest["spec"]["training"] = {"totalStep": -1, "optimizer": {"learningRate": 1}}


def tracker_not_installed(run: LocalRun, _: Path) -> None:
    run.manifest["spec"]["training"] = {"totalStep": 1, "globalBatchSize": 4, "reportTo": ["wandb"]}


def write_chats(run: LocalRun, text: str) -> None:
    run.folder.mkdir(exist_ok=True)
    path = run.folder / "bad.jsonl"
    path.write_text(text)
    run.manifest["spec"]["data"]["datasets"][0]["uri"] = f"file://{path}"


CASES: list[tuple[Callable[[LocalRun, Path], None], int, list[str]]] = [
    (broken_json, 65, ["bad.jsonl:2"]),
    (unknown_role, 65, ["bad.jsonl:1", "role", "robot"]),
    (nothing_trained, 65, ["bad.jsonl:1", "assistant"]),
    (empty_file, 65, ["bad.jsonl", "empty"]),
    (missing_model, 66, ["nowhere", "no such folder"]),
    (truncated_weights, 66, ["model.safetensors", "copy the model again"]),
    (packed_base_without_gpu, 64, ["spec.training.lora.quantize: nf4 needs an NVIDIA GPU", "remove it"]),
    (leaking_architecture, 64, ["bloom can't be trained here", "a change in one document of a pack", "another model"]),
    (too_many_processes, 64, ["spec.compute.processesPerNode", "64"]),
    (tracker_not_installed, 64, ["spec.training.reportTo: wandb needs the Python package wandb", "pip install wandb"]),
    (wrong_fields, 64, ["spec.training.totalStep: -1", "spec.training.optimizer.learningRate: unknown field"]),
]


@pytest.mark.parametrize(("spoil", "code", "said"), CASES, ids=[case[0].__name__ for case in CASES])
def test_bad_input_gets_a_message_with_place_and_remedy(
    run: LocalRun, smollm2: Path, spoil: Callable[[LocalRun, Path], None], code: int, said: list[str]
) -> None:
    spoil(run, smollm2)
    assert run.start().wait() == code, run.log
    for words in said:
        assert words in run.log.replace("\n", " ")
    assert "Traceback" not in run.log
    assert len(run.status().get("attempts", {}).get("history", [])) <= 1
