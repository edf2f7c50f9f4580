"""Jobs with a script of the user's own, under `sft run`: with our Trainer in it, and without."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.local_run import EVERY_STEPS, LocalRun, assert_bit_equal, fingerprint, kill
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

SMALL_SCRIPT = Path(__file__).with_name("small_script.py")
OUTPUT = [{"uri": "pvc://results/model"}]
STORAGE = {"storage": "pvc://results/kept"}


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
        "the model is whole: ['README.md', 'chat_template.jinja', 'config.json'"
        in (run.folder / "attempts/3/node-0/launcher.log").read_text()
    )
    assert not Path("nowhere").exists()


ADAPTED = """
import sys
from sft_trainer.config import AdamWConfig, LoRAConfig, LRConfig
from sft_trainer.datasets import OpenaiTokenizeFunctionConfig
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig
from sft_trainer.model import get_model_config_from_hf
from sft_trainer.train import Trainer
base, tokenizer, data = sys.argv[1:]
chats = {"dataset": DatasetConfig(name="chats", anno_path=data), "tokenize_fn": OpenaiTokenizeFunctionConfig()}
folder = Trainer(
    model_cfg=get_model_config_from_hf(base), load_from=base, tokenizer_path=tokenizer, lora_cfg=LoRAConfig(rank=2),
    dataloader_cfg=DataloaderConfig(dataset_config_list=[chats], pack_max_length=256),
    optim_cfg=AdamWConfig(lr=1e-3), lr_cfg=LRConfig(), total_step=2,
).fit()
print("of the first output:", sorted(path.name for path in folder.iterdir()))
"""


def small_base(folder: Path) -> str:
    config = Qwen3Config(
        vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.full
def test_a_script_s_lora_leaves_each_output_in_its_format_and_dtype_and_its_own_word_on_saves_is_told(
    script_run: LocalRun, smollm2: Path, chats: Path
) -> None:
    base = small_base(script_run.folder / "base")
    output = [
        {"uri": "pvc://results/adapter", "format": "adapter"},
        {"uri": "pvc://results/model", "dtype": "bf16"},
    ]
    checkpoint = {"everySteps": 1, "saveMode": "async"}
    script = ADAPTED.replace("total_step=2", "total_step=2, async_checkpoint=False")
    run = with_script(script_run, script, base, str(smollm2), str(chats), output=output, checkpoint=checkpoint)
    run.start().succeed()
    artifacts = {artifact["uri"]: artifact["format"] for artifact in run.status()["artifacts"]}
    assert artifacts == {"pvc://results/adapter": "adapter", "pvc://results/model": "hf"}
    log = (run.folder / "attempts/1/node-0/launcher.log").read_text()
    assert "of the first output: ['README.md', 'adapter_config.json', 'adapter_model.safetensors'" in log
    assert "sample 1; trained is what stands between" in log
    assert "save_mode of the script is sync: the job's own async does not count" in log
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.folder / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert merged.dtype == torch.bfloat16
    theirs = adapted.merge_and_unload().to(torch.bfloat16).state_dict()
    assert [name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, theirs[name])] == []


@pytest.mark.full
def test_a_script_s_lora_without_an_output_leaves_model_and_adapter_beside_its_checkpoints(
    script_run: LocalRun, smollm2: Path, chats: Path
) -> None:
    base = small_base(script_run.folder / "base")
    run = with_script(script_run, ADAPTED, base, str(smollm2), str(chats), checkpoint=STORAGE).start().succeed()
    names = {path.name for path in (run.folder / "kept").iterdir()}
    assert {"hf", "adapter", "step-2"} <= names
    assert not [name for name in names if ".tmp" in name]
    assert (run.folder / "kept/adapter/adapter_model.safetensors").is_file()
    assert (run.folder / "kept/hf/model.safetensors").is_file()
    assert "artifacts" not in run.status() or run.status()["artifacts"] == []


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


def without_lora(run: LocalRun) -> None:
    output = [*OUTPUT, {"uri": "pvc://results/adapter", "format": "adapter"}]
    with_script(run, SMALL_SCRIPT.read_text(), str(run.folder), str(run.folder / "no.jsonl"), output=output)


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
    "an adapter that nobody makes": (
        without_lora,
        64,
        ["spec.output[1].format: adapter, but the script's Trainer has no lora_cfg, which makes one; add it, or use"],
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
