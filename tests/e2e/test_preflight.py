"""`sft run` of a job whose first attempt prepares and stops: what it leaves, what the next one makes of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.local_run import LocalRun, job


@pytest.fixture
def run(tmp_path: Path, smollm2: Path, chats: Path) -> Iterator[LocalRun]:
    """On two nodes, two steps long."""
    manifest = job(
        tokenizer=smollm2.as_uri(),
        data=chats.as_uri(),
        training={"totalStep": 2},
        compute={"nodes": 2, "processesPerNode": 1},
        runPolicy={"preflight": "always"},
    )
    run = LocalRun(tmp_path, manifest)
    yield run
    run.stop()


def test_a_pre_flight_prepares_with_one_launcher_and_the_next_attempt_trains_from_what_it_made(run: LocalRun) -> None:
    run.start().succeed()
    attempts = run.status()["attempts"]
    last, first = attempts["history"]
    assert (first["number"], first["kind"], first["reason"], first["exitCode"]) == (1, "Preflight", "Prepared", 0)
    assert (last["number"], last["kind"], last["reason"]) == (2, "Training", "Succeeded")
    assert (attempts["prepared"], attempts["failures"], attempts["disruptions"]) == (1, 0, 0)

    # Nothing was trained in attempt 1, and by one launcher.
    left = [{path.name for path in (run.storage / "attempts" / number).iterdir()} for number in "12"]
    assert left[0] == {"node-0.json"}
    assert left[1] > {"node-0.json", "node-1.json", "metrics.jsonl"}
    assert list(run.metrics()) == [1, 2]

    # Tokens and packs are older than attempt 1's last word.
    claim = run.storage / "attempts" / "1" / "node-0.json"
    assert json.loads(claim.read_text())["outcome"]["reason"] == "Prepared"
    cache = run.storage / "cache"
    made = [path for kind in ("tokens", "packs") for path in cache.glob(f"{kind}-*/*")]
    assert {path.parent.name.partition("-")[0] for path in made} == {"tokens", "packs"}
    assert [path for path in made if path.stat().st_mtime_ns > claim.stat().st_mtime_ns] == []

    for words in ("attempt 1 (pre-flight): preparing data", "attempt 1 found storage, model and data ready"):
        assert words in run.log


@pytest.mark.full
def test_bad_data_is_told_by_the_pre_flight_and_nothing_follows_it(run: LocalRun, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [\n')
    run.manifest["spec"]["data"]["datasets"][0]["uri"] = bad.as_uri()
    assert run.start().wait() == 65, run.log
    assert "bad.jsonl:1" in run.log
    (record,) = run.status()["attempts"]["history"]
    assert (record["kind"], record["reason"]) == ("Preflight", "InvalidData")
    assert not (run.storage / "attempts" / "2").exists()


@pytest.mark.full
def test_a_script_is_looked_at_by_the_pre_flight_and_run_by_the_next_attempt(tmp_path: Path) -> None:
    """Its runs are told by what it writes, and only the second attempt may run it."""
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'x').write('once')\n")
    spec = {
        "script": {"uri": "pvc://results/own.py"},
        "checkpoint": {"storage": "pvc://results/kept"},
        "runPolicy": {"preflight": "always"},
    }
    manifest = {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": {"name": "script"}, "spec": spec}
    run = LocalRun(tmp_path, manifest)
    try:
        run.start().succeed()
    finally:
        run.stop()
    history = run.status()["attempts"]["history"]
    assert [(one["kind"], one["reason"]) for one in history] == [("Training", "Succeeded"), ("Preflight", "Prepared")]
    assert (tmp_path / "ran").read_text() == "once"
