"""`sft data inspect`, with the trainer that it starts: what it says of good rows and of bad ones."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from sft_cli import inspect_data
from sftjob.inspection import Inspection, InspectionTask, Piece
from sftjob.receipt import DataReceipt
from tests.hub_server import HubServer, files_of
from tests.sft_trainer.train.small_run import save_tokenizer


def inspect(folder: Path, rows: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "rows.jsonl").write_text("".join(row + "\n" for row in rows))
    save_tokenizer(folder / "model")
    return sft(folder, "data", "inspect", "rows.jsonl", "--model", "model", *options)


def sft(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from sft_cli.main import app; app()", *arguments]
    environment = os.environ | environment
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env=environment)


def test_counts_and_samples_are_shown_with_what_is_trained(tmp_path: Path) -> None:
    rows = [json.dumps({"instruction": f"ask {n}", "output": f"answer {n}"}) for n in range(3)]
    said = inspect(tmp_path, rows, "--samples", "2")
    assert (said.returncode, said.stderr) == (0, "")
    receipt, *shown = said.stdout.splitlines()
    assert receipt == "alpaca: 3 samples, 111 tokens, 27 of them trained; 0 truncated, 0 dropped; 1 pack"
    assert [line for line in shown if line.startswith("sample")] == [
        "sample 1; trained is what stands between ⟦ and ⟧",
        "sample 2; trained is what stands between ⟦ and ⟧",
    ]
    assert "⟦answer 0<|eot_id|>⟧" in said.stdout
    assert "⟦answer 2<|eot_id|>⟧" not in said.stdout


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    rows = [json.dumps({"question": "ask", "answer": "answer 0"})]
    said = inspect(tmp_path, rows, "--columns", "instruction=question,output=answer")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith("alpaca: 1 sample")
    assert "⟦answer 0<|eot_id|>⟧" in said.stdout
    refused = inspect(tmp_path, rows, "--columns", "question")
    assert (refused.returncode, refused.stderr.partition(" is no map")[0]) == (64, "--columns: question")
    refused = inspect(tmp_path, rows, "--format", "text", "--columns", "instruction=question")
    assert refused.returncode == 64
    assert refused.stderr.startswith("columns: not all are fields of one format that text allows; use those of one: ")


def test_on_a_terminal_colour_tells_what_is_trained(monkeypatch) -> None:
    receipt = DataReceipt(samples=1, tokens=2, trained_tokens=1, packs=1)
    pieces = [Piece(text="asked ", is_trained=False), Piece(text="answered", is_trained=True)]
    found = Inspection(format="text", receipt=receipt, samples=[pieces]).to_json()
    monkeypatch.setattr(inspect_data, "ask_trainer", lambda *_, **__: found)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", _environ={})
    task = InspectionTask(file="d", model="m", max_length=8, overlong="drop", samples=1)
    inspect_data.inspect_data(task, console)
    assert "asked \x1b[1;32manswered\x1b[0m" in console.file.getvalue()


def test_faults_are_told_with_file_line_and_remedy_and_the_exit_code_of_a_job(tmp_path: Path) -> None:
    said = inspect(tmp_path, ['{"text": "fine"}', '{"text": 7}'])
    assert (said.returncode, said.stdout) == (65, "")
    assert said.stderr == "rows.jsonl:2: text: is a number; write a string\n"


def test_a_wrong_option_is_refused_with_what_may_stand_there(tmp_path: Path) -> None:
    said = inspect(tmp_path, ['{"text": "fine"}'], "--format", "csv")
    assert said.returncode == 64
    assert said.stderr.startswith("format: 'csv' is not allowed; use 'auto', 'messages', 'sharegpt'")


def test_bad_rows_within_the_budget_are_skipped_and_told(tmp_path: Path) -> None:
    said = inspect(tmp_path, ['{"text": "fine"}', '{"text": 7}'], "--bad-line-budget", "1", "--samples", "0")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.splitlines() == [
        "text: 1 sample, 5 tokens, 4 of them trained; 0 truncated, 0 dropped, 1 bad row skipped; 1 pack",
        "  skipped rows.jsonl:2: text: is a number; write a string",
    ]


def test_data_and_model_of_a_hub_are_downloaded_once_without_weights(tmp_path: Path) -> None:
    with HubServer() as hub:
        weights = {"model.safetensors": b"no need"}
        hub.model("tiny/llama").commit(files_of(save_tokenizer(tmp_path / "published")) | weights)
        hub.dataset("tiny/chats").commit({"data/train.jsonl": b'{"text": "first"}\n'}, ref="v1")
        second = {"data/train.jsonl": b'{"text": "second"}\n', "data/test.jsonl": b'{"text": "third"}\n'}
        hub.dataset("tiny/chats").commit(second)
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = ("data", "inspect", "hf://datasets/tiny/chats/data/train.jsonl", "--model", "hf://tiny/llama")
        for revision, text in ((), "s⟦econd<"), (("--revision", "v1"), "f⟦irst<"), ((), "s⟦econd<"):
            said = sft(tmp_path, *command, *revision, **home)
            assert (said.returncode, said.stderr) == (0, "")
            assert text in said.stdout
        parts = ("--config", "default", "--split", "test")
        split = sft(tmp_path, *command[:2], "hf://datasets/tiny/chats", *command[3:], *parts, **home)
        assert (split.returncode, split.stderr) == (0, "")
        assert "t⟦hird<" in split.stdout
        asked = hub.files_asked()
        assert (asked.count("data/train.jsonl"), asked.count("tokenizer.json")) == (2, 1)
        assert "model.safetensors" not in asked

        missing = sft(tmp_path, *command[:2], "hf://datasets/tiny/chat/x.jsonl", *command[3:], **home)
        assert missing.returncode == 65
        assert missing.stderr.startswith("dataset.uri: hf://datasets/tiny/chat/x.jsonl is not found at http://127")
    wrong = sft(tmp_path, "data", "inspect", "hf://tiny/chats", "--model", "model")
    assert (wrong.returncode, wrong.stdout) == (64, "")
    assert wrong.stderr.startswith(
        "uri: 'hf://tiny/chats' has the wrong form; use hf://datasets/<owner>/<name>[/<path>]"
    )
    local = sft(tmp_path, "data", "inspect", "rows.jsonl", "--model", "model", "--split", "test")
    assert local.returncode == 64
    assert local.stderr.startswith("uri: 'rows.jsonl' has the wrong form")
