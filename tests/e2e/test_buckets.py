"""`sft run` with everything in buckets: killed and resumed to the bit, exported, and fenced, on a real MinIO."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from e2e.bucket_run import BucketRun, bucket_job
from e2e.local_run import fingerprint, kill
from s3_server import S3Server
from transformers import AutoModelForCausalLM

from sftjob.outcome import Outcome


@pytest.fixture
def run(tmp_path: Path, sources: S3Server) -> Iterator[BucketRun]:
    run = BucketRun(tmp_path / "run", bucket_job("killed"), sources.environment)
    yield run
    run.stop()


@pytest.fixture
def undisturbed(tmp_path: Path, sources: S3Server) -> BucketRun:
    return BucketRun(tmp_path / "undisturbed", bucket_job("undisturbed"), sources.environment).start().succeed()


@pytest.mark.usefixtures("undisturbed")
def test_a_killed_run_goes_on_from_the_bucket_to_the_same_model_though_its_own_copy_is_gone(
    run: BucketRun, s3: S3Server, tmp_path: Path
) -> None:
    held = s3.hold("PUT", r"killed/model\.checkpoints/step-4/manifest\.json")
    run.start()
    run.until(held.reached.is_set)
    # Its files are there; without a manifest it is no checkpoint.
    assert "killed/model.checkpoints/step-4/.metadata" in s3.listed("killed/model.checkpoints/step-4")
    (launcher,) = run.processes("sft_trainer.launcher --plan")
    rank = run.rank(0)
    run.process.send_signal(signal.SIGSTOP)
    kill(launcher)
    run.until(lambda: rank not in run.processes("sft-rank"))
    s3.forget(held)
    subprocess.run(["rm", "-rf", run.folder / "s3"], check=True)
    run.process.send_signal(signal.SIGCONT)
    run.succeed()

    status = run.status()
    assert [record["reason"] for record in status["attempts"]["history"]] == ["Succeeded", "LauncherLost"]
    assert status["attempts"]["history"][0]["resumedFrom"] == 3
    ours = s3.fetch_folder("killed/model", tmp_path / "ours")
    theirs = s3.fetch_folder("undisturbed/model", tmp_path / "theirs")
    manifest = json.loads((ours / "sftjob-manifest.json").read_text())
    (artifact,) = status["artifacts"]
    assert (artifact["uri"], artifact["format"]) == ("s3://bucket/killed/model", "hf")
    assert {entry["path"] for entry in manifest["files"]} | {"sftjob-manifest.json"} == set(fingerprint(ours))
    assert fingerprint(ours)["model.safetensors"] == fingerprint(theirs)["model.safetensors"]
    assert AutoModelForCausalLM.from_pretrained(ours).config.model_type == "llama"

    checkpoints = "killed/model.checkpoints"
    steps = {key.split("/")[2] for key in s3.listed(checkpoints) if "/step-" in key}
    assert steps == {"step-5", "step-6"}
    assert s3.get(f"{checkpoints}/latest") == b"step-6"
    claims = {n: json.loads(s3.get(f"{checkpoints}/attempts/{n}/node-0.json")) for n in (1, 2)}
    assert claims[2]["outcome"]["reason"] == "Succeeded"
    # Killed: it could say nothing. What it had told with its last checkpoint is there.
    assert "outcome" not in claims[1]
    assert b'"step":3' in s3.get(f"{checkpoints}/attempts/1/ledger-0.jsonl")


@pytest.mark.full
def test_an_attempt_that_is_superseded_in_a_save_leaves_and_changes_nothing(run: BucketRun, s3: S3Server) -> None:
    held = s3.hold("PUT", r"step-2/\.metadata")
    run.start()
    run.until(held.reached.is_set)
    storage = "killed/model.checkpoints"
    s3.put(f"{storage}/attempts/2/node-0.json", s3.get(f"{storage}/attempts/1/node-0.json"))
    before = s3.listed(storage)
    held.released.set()
    node = run.folder / "attempts" / "1" / "node-0"
    run.until((node / "outcome.json").exists)
    outcome = Outcome.from_json((node / "outcome.json").read_text())
    assert (outcome.reason, outcome.exit_code) == ("Superseded", 76)
    run.stop()
    # The request that was on its way has arrived; nothing follows it.
    added = {key for key in s3.listed(storage) if key not in before and "/attempts/1/" not in key}
    assert added == {f"{storage}/step-2/.metadata"}


@pytest.mark.full
def test_a_stop_while_the_model_is_uploaded_ends_the_attempt_and_the_next_one_publishes(
    run: BucketRun, s3: S3Server
) -> None:
    held = s3.hold("PUT", r"killed/model/config\.json")
    run.start()
    run.until(held.reached.is_set)
    (launcher,) = run.processes("sft_trainer.launcher --plan")
    assert json.loads((run.folder / "attempts/1/node-0/progress.json").read_text())["detail"].startswith(
        "s3://bucket/killed/model/config.json: 0"
    )
    os.kill(launcher, signal.SIGTERM)
    held.released.set()
    run.succeed()
    first = json.loads(s3.get("killed/model.checkpoints/attempts/1/node-0.json"))["outcome"]
    assert first["reason"] == "Preempted"
    assert first["message"].startswith("stopped in stage Publishing, at s3://bucket/killed/model/")
    assert [record["reason"] for record in run.status()["attempts"]["history"]] == ["Succeeded", "Preempted"]
    assert "killed/model/sftjob-manifest.json" in s3.listed("killed/model")
    assert any("tensorboard/events" in key for key in s3.listed("killed/model.checkpoints"))


def test_sft_train_takes_places_in_buckets_for_flags(tmp_path: Path) -> None:
    command = [
        *(str(Path(sys.executable).with_name("sft")), "train", "--model", "s3://bucket/llama"),
        *("--data", "s3://bucket/chats/train.jsonl", "--output", "s3://bucket/tuned", "--total-step", "1"),
        *("--dry-run",),
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    manifest = yaml.safe_load(told.stdout)
    assert manifest["metadata"]["name"] == "tuned"
    assert manifest["spec"]["model"]["loadFrom"]["uri"] == "s3://bucket/llama"
    assert [dataset["uri"] for dataset in manifest["spec"]["data"]["datasets"]] == ["s3://bucket/chats/train.jsonl"]
    assert [output["uri"] for output in manifest["spec"]["output"]] == ["s3://bucket/tuned"]


def test_a_bucket_that_is_not_there_ends_the_job_with_a_remedy(run: BucketRun) -> None:
    run.manifest["spec"]["model"] = {"loadFrom": {"uri": "s3://buckte/llama"}}
    assert run.start().wait() == 66
    assert "spec.model.loadFrom.uri: s3://buckte/llama: there is no bucket buckte at http://127.0.0.1" in run.log
    assert "Traceback" not in run.log
