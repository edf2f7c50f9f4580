"""The memory table of `sft train --dry-run`, with the trainer that it starts, against tensors that are really there."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sft_trainer.train.optimizer import build_optimizer
from sftjob.options import AdamWConfig
from tests.hub_server import HubServer, files_of
from tests.sft_trainer.model import tiny_models as tiny


def dry_run(folder: Path, *options: str, model: str = "model", **environment: str) -> list[str]:
    arguments = ["train", "--model", model, "--data", "x.jsonl", "--output", "out", "--dry-run", *options]
    command = [sys.executable, "-c", "from sft_cli.main import app; app()", *arguments]
    environment = os.environ | environment
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env=environment)
    assert (said.returncode, said.stderr) == (0, "")
    assert yaml.safe_load(said.stdout)["kind"] == "SFTJob"
    return said.stdout.splitlines()


def test_the_table_tells_the_bytes_of_the_tensors_of_a_rank(tmp_path: Path) -> None:
    sizes = {"vocab_size": 4001, "hidden_size": 256, "intermediate_size": 500}
    model = tiny.built(tiny.save_random_model(tmp_path / "model", "llama", **sizes))
    optimizer = build_optimizer(model, AdamWConfig())
    model(tiny.pack(tiny.documents([9]))).backward()
    optimizer.step()
    parts = [parameter.detach().chunk(2)[0] for parameter in model.parameters()]  # rows are shared out by `chunk`
    weights = sum(part.nbytes for part in parts)
    assert weights < sum(parameter.nbytes for parameter in model.parameters()) / 1.9
    moments = [state[name].chunk(2)[0] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    lines = dry_run(tmp_path, "--processes-per-node", "2", "--max-length", "64", "--precision", "fp32")
    assert lines[-8].startswith("# memory of each rank, fp32 activations, a pack of 64 tokens")
    table = {line.split()[1]: float(line.split()[2]) for line in lines[-7:]}
    # Of the embedding and the head each rank has all from the forward to the backward, and of the norm of 256.
    assert table["gathered"] == round((2 * 4001 * 256 + 256) * 4 / 1e9, 3)
    assert table["weights"] == table["gradients"] == round(weights / 1e9, 3)
    assert table["moments"] == round(sum(moment.nbytes for moment in moments) / 1e9, 3)
    # 64 rows of 4,001 logits, and the head's gradient of 4,001 x 256, in fp32.
    assert table["logits"] == round((64 * 4001 + 4001 * 256) * 4 / 1e9, 3)
    assert table["together"] >= round(4 * weights / 1e9, 3) > 0.01


def test_a_sum_without_the_activations_says_so(tmp_path: Path) -> None:
    tiny.save_random_model(tmp_path / "model", "gpt_oss")
    *_, activations, _, together = dry_run(tmp_path)
    assert activations == "#   activations   unknown"
    assert together.startswith("#   at least ")


def test_a_model_that_a_job_would_refuse_is_told_and_the_job_is_printed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert dry_run(tmp_path)[-1] == (
        f"# memory: not told, for this job would fail: {tmp_path}/model/config.json: missing; "
        "name a Hugging Face model folder, which has one"
    )


def test_a_hub_that_does_not_answer_is_told_in_one_line_and_soon(tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        hub = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        home = {"HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        told = dry_run(tmp_path, model="hf://tiny/llama", HF_ENDPOINT=hub, **home)[-1]
    assert told.startswith(
        f"# memory: not told, for this job would fail: model.uri: hf://tiny/llama: no useful answer from {hub} ("
    )


@pytest.mark.full
def test_of_a_model_on_a_hub_the_configuration_is_asked_for_and_no_weights(tmp_path: Path) -> None:
    published = Path(tiny.save_random_model(tmp_path / "published", "llama", vocab_size=4001, hidden_size=256))
    home = {"HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with HubServer() as hub:
        hub.model("tiny/llama").commit(files_of(published))
        lines = dry_run(tmp_path, model="hf://tiny/llama", HF_ENDPOINT=hub.url, **home)
        assert not any("safetensors" in path for path in hub.files_asked())
        missing = dry_run(tmp_path, model="hf://tiny/lama", HF_ENDPOINT=hub.url, **home)[-1]
    assert lines[-7:] == dry_run(tmp_path, model=str(published))[-7:]
    assert missing.startswith(
        "# memory: not told, for this job would fail: model.uri: hf://tiny/lama is not found at http"
    )


def test_a_packed_base_needs_a_gpu_that_the_job_asks_for(tmp_path: Path) -> None:
    sizes = {"vocab_size": 96, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1}
    tiny.save_random_model(tmp_path / "model", "llama", **sizes)
    assert dry_run(tmp_path, "--quantize", "nf4")[-1].startswith(
        "# memory: not told, for this job would fail: spec.training.lora.quantize: nf4 needs an NVIDIA GPU"
    )
    job = tmp_path / "job.yaml"
    job.write_text(
        "apiVersion: sftjob.dev/v1alpha1\nkind: SFTJob\nmetadata: {name: packed}\nspec:\n"
        '  compute: {processesPerNode: 2, resources: {limits: {nvidia.com/gpu: "2"}}}\n'
    )
    lines = dry_run(tmp_path, str(job), "--quantize", "nf4")
    table = {line.split()[1]: float(line.split()[2]) for line in lines[-7:]}
    # Three matrices of 1024 x 4096; with 4 heads of 8, 2 for keys and values, two of 1024 x 32 and two of 1024 x 16:
    # 4 bits each and a byte for 64 of them, whole on both ranks. What is half of the rest is under 1 MB.
    packed = (3 * 1024 * 4096 + 2 * 1024 * 32 + 2 * 1024 * 16) * (0.5 + 1 / 64)
    assert packed / 1e9 < table["weights"] < (packed + 1.6e6) / 1e9
