"""Jobs with a script of the user's own, under `sft run`: with our Trainer in it, and without."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.local_run import EVERY_STEPS, LocalRun, assert_bit_equal, fingerprint, kill
from transformers import AutoModelForCausalLM

SMALL_SCRIPT = Path(__file__).with_name("small_script.py")
OUTPUT = [{"uri": "pvc://results/model"}]


@pytest.fixture
def script_run(tmp_path: Path) -> Iterator[LocalRun]:
    """A job whose script is still to be given."""
    run = LocalRun(tmp_path, {})
    yield run
    run.stop()


def with_script(run: LocalRun, script: str, *arguments: str, processes: int = 1, **spec: Any) -> LocalRun:
    (run.folder / "own.py").write_text(script)
    sections = {
        "script": {"uri": "pvc://results/own.py", "args": list(arguments)},
        "compute": {"processesPerNode": processes},
        "runPolicy": {"retries": 0},
    }
    run.manifest = {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {"name": "script"},
        "spec": sections | spec,
    }
    return run


def test_a_script_with_our_trainer_killed_and_then_stopped_ends_bit_equal_to_the_same_job_without_a_script(
    script_run: LocalRun, undisturbed: LocalRun, smollm2: Path, chats: Path
) -> None:
    shutil.copy(chats, script_run.folder / "chats.jsonl")
    run = with_script(
        script_run,
        SMALL_SCRIPT.read_text(),
        str(smollm2),
        "pvc://results/chats.jsonl",
        processes=2,
        checkpoint={"everySteps": EVERY_STEPS},
        output=OUTPUT,
        runPolicy={"retries": 1},
    ).start()
    run.until_step(3)
    kill(run.rank(1))
    run.until_step(7, attempt=2)
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM, run.log
    run.start().succeed()

    status = run.status()
    last, stopped, killed = status["attempts"]["history"]
    assert (killed["reason"], killed["rank"], killed["signal"]) == ("RankKilled", 1, signal.SIGKILL)
    assert "rank 1 of 2" in killed["logTail"]
    assert (stopped["reason"], stopped["resumedFrom"]) == ("Preempted", killed["savedStep"])
    assert stopped["savedStep"] == stopped["lastStep"] >= 7
    assert (last["reason"], last["resumedFrom"]) == ("Succeeded", stopped["savedStep"])
    assert_bit_equal(run, undisturbed)
    assert status["data"] == undisturbed.status()["data"]
    progress = status["progress"]
    assert (progress["step"], progress["totalSteps"], progress["savedStep"]) == (12, 12, 12)
    assert progress["loss"] == undisturbed.status()["progress"]["loss"]
    (artifact,) = status["artifacts"]
    assert artifact["uri"] == "pvc://results/model"
    weights = fingerprint(run.folder / "model")["model.safetensors"]
    assert weights == fingerprint(undisturbed.folder / "model")["model.safetensors"]
    _, info = AutoModelForCausalLM.from_pretrained(run.folder / "model", output_loading_info=True)
    assert not any(info.values())
    assert (
        "the model is whole: ['chat_template.jinja', 'config.json'"
        in (run.folder / "attempts/3/node-0/launcher.log").read_text()
    )
    assert not Path("nowhere").exists()


PLAIN = """
import os, sys
import torch.distributed as dist
dist.init_process_group("gloo")
print("rank", dist.get_rank(), "of", dist.get_world_size())
dist.barrier()
if dist.get_rank() == 0:
    os.makedirs(os.environ["SFTJOB_OUTPUT"])
    open(os.path.join(os.environ["SFTJOB_OUTPUT"], "config.json"), "w").write("{}")
dist.destroy_process_group()
"""


def test_a_script_without_our_trainer_has_succeeded_when_it_exits_0_and_what_it_left_is_published(
    script_run: LocalRun,
) -> None:
    run = with_script(script_run, PLAIN, processes=2, output=OUTPUT).start().succeed()
    (record,) = run.status()["attempts"]["history"]
    assert record["reason"] == "Succeeded"
    assert run.status()["progress"]["stage"] == "Publishing"
    assert [artifact["uri"] for artifact in run.status()["artifacts"]] == ["pvc://results/model"]
    assert sorted(path.name for path in (run.folder / "model").iterdir()) == ["config.json", "sftjob-manifest.json"]
    log = (run.folder / "attempts/1/node-0/launcher.log").read_text()
    assert "rank 0 of 2" in log
    assert "rank 1 of 2" in log


FAILING = """
import os, sys
print("this is the end", file=sys.stderr)
sys.exit(3 if os.environ["RANK"] == "0" else 0)
"""

SWALLOWING = """
from pathlib import Path
from sftjob.failure import JobFailure
try:
    exec(Path(__file__).with_name("small.py").read_text())
except JobFailure as failure:
    print("never mind", failure)
"""


def swallowing(run: LocalRun) -> None:
    shutil.copy(SMALL_SCRIPT, run.folder / "small.py")
    (run.folder / "chats.jsonl").write_text("{}\n")
    with_script(run, SWALLOWING, str(run.folder), str(run.folder / "chats.jsonl"), output=OUTPUT)


STORAGE = {"storage": "pvc://results/kept"}
CASES = {
    "an exit code": (lambda run: with_script(run, FAILING, checkpoint=STORAGE), 70, ["exit code 3", "this is the end"]),
    "no Python": (
        lambda run: with_script(run, "def f(:\n", checkpoint=STORAGE),
        64,
        ["spec.script.uri: ", "own.py, line 1: def f(:: SyntaxError: invalid syntax; correct it"],
    ),
    "an import that fails": (
        lambda run: with_script(run, "import nowhere_at_all\n", checkpoint=STORAGE),
        70,
        ["RankFailed: ModuleNotFoundError: No module named 'nowhere_at_all'", "| Traceback"],
    ),
    "nothing for the output": (
        lambda run: with_script(run, "pass", output=OUTPUT),
        64,
        ["spec.output[0].uri: ", "left nothing for pvc://results/model; ", "SFTJOB_OUTPUT"],
    ),
    "a failure of our Trainer that it swallows": (swallowing, 65, ["chats.jsonl:1: (line): has no fields"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_script_that_fails_is_told_with_its_own_last_words(script_run: LocalRun, case: str) -> None:
    prepare, code, said = CASES[case]
    prepare(script_run)
    assert script_run.start().wait() == code, script_run.log
    for words in said:
        assert words in script_run.log
    (record,) = script_run.status()["attempts"]["history"]
    assert record["exitCode"] == code
