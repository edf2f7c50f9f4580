"""A run with LoRA: what its checkpoints hold, that it goes on bit-exactly, and what it may not go on from."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_run import SmallRun, save_base
from transformers import AutoModelForCausalLM

from sft_trainer.model import get_model_config_from_hf, nf4
from sft_trainer.train import Trainer, loop
from sft_trainer.train.stop import Preempted
from sftjob.failure import JobFailure, Reason
from sftjob.options import LoRAConfig

LORA = LoRAConfig(rank=4, alpha=16, dropout=0.3, modules_to_save=["model.norm"])
PACKED = LORA.model_copy(update={"quantize": "nf4"})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


def test_a_stopped_run_goes_on_bit_equal_from_a_checkpoint_of_adapters_alone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path / "undisturbed", lora=LORA, load_from=base, interval=None)
    run.go()
    losses = [line["loss"] for line in run.lines()]

    stopped = run.another("stopped")
    # Two micro-batches a step: the eighth look is at the end of the fourth step's last, whose dropout is drawn by then.
    looks = iter(range(1, 9))
    monkeypatch.setattr(loop, "agreed_seconds_ago", lambda *_: 0.0 if next(looks) == 8 else None)
    with pytest.raises(Preempted):
        stopped.go()
    monkeypatch.undo()
    assert stopped.checkpoints() == [3]
    assert stopped.go().resumed_from == 3
    assert [line["loss"] for line in stopped.lines()] == losses[3:]

    ours, theirs = stopped.tensors(6), run.tensors(6)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    for folder in ("model", "adapter"):
        for file in (run.folder / folder).glob("*.safetensors"):
            assert file.read_bytes() == (stopped.folder / folder / file.name).read_bytes()

    modules = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    trained = {
        f"model.layers.{layer}.{module}.lora_{matrix}.default.weight"
        for layer in (0, 1)
        for module in modules
        for matrix in "AB"
    } | {"model.norm.modules_to_save.default.weight"}
    assert theirs.keys() == {
        *(f"model.{name}" for name in trained),
        *(f"optimizer.{name}.{moment}" for name in trained for moment in ("exp_avg", "exp_avg_sq")),
        "rng.0",
    }


def test_both_outputs_are_one_model_in_transformers_and_peft(base: Path, tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", lora=LoRAConfig(rank=4, dora=True), load_from=base, total_steps=3)
    run.go()
    merged = AutoModelForCausalLM.from_pretrained(run.exported).state_dict()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.adapter).merge_and_unload()
    untouched = load_file(base / "model.safetensors")
    for name, tensor in adapted.state_dict().items():
        assert torch.equal(merged[name], tensor), name
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], untouched["model.layers.0.mlp.up_proj.weight"])
    assert (run.adapter / "tokenizer.json").exists()


def test_another_adapter_or_another_base_may_not_go_on(base: Path, tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", lora=LORA, load_from=base, total_steps=1)
    run.go()
    other_base = tmp_path / "other"
    shutil.copytree(base, other_base)
    tensors = load_file(base / "model.safetensors")
    # Of the same size and names, as every training of one model is.
    moved = {name: tensor + 1e-3 for name, tensor in tensors.items()}
    save_file(moved, other_base / "model.safetensors", metadata={"format": "pt"})
    for changed in (
        SmallRun(run.folder, lora=LORA.model_copy(update={"alpha": 8}), load_from=base, total_steps=1, attempts=1),
        SmallRun(run.folder, lora=None, load_from=base, total_steps=1, attempts=2),
        SmallRun(run.folder, lora=LORA, load_from=other_base, total_steps=1, attempts=3),
    ):
        with pytest.raises(JobFailure, match="was trained with other options") as refused:
            changed.go()
        assert refused.value.reason is Reason.INVALID_CONFIGURATION
    # A copy of the same base elsewhere is the same base.
    moved_base = tmp_path / "moved"
    base.rename(moved_base)
    again = SmallRun(run.folder, lora=LORA, load_from=moved_base, total_steps=1, attempts=4)
    assert again.go().resumed_from == 1


def test_the_python_api_leaves_the_merged_model_and_the_adapter(base: Path, tmp_path: Path) -> None:
    options = SmallRun(tmp_path / "run", total_steps=2).options()
    arguments = {
        "model_cfg": get_model_config_from_hf(base),
        "tokenizer_path": options.tokenizer_path,
        "dataloader_cfg": options.dataloader_cfg,
        "optim_cfg": options.optim_cfg,
        "lr_cfg": options.lr_cfg,
        "lora_cfg": LoRAConfig(rank=4, rslora=True),
        "total_step": 4,
        "checkpoint_interval": 1,
        "checkpoint_maxkeep": -1,
        "work_dir": tmp_path / "work",
    }
    with pytest.raises(
        JobFailure, match="checkpoint_maxkeep: 0 keeps no spare checkpoint; use 2 or more, or -1 to keep"
    ):
        Trainer(**arguments | {"checkpoint_maxkeep": 0})
    with pytest.raises(JobFailure, match="lora_cfg: given without load_from, so there is no trained model to adapt"):
        Trainer(**arguments)
    folder = Trainer(**arguments, load_from=base).fit()
    # No checkpoint is deleted.
    assert {path.name for path in folder.parent.iterdir()} == {
        "hf",
        "adapter",
        *(f"step-{step}" for step in range(1, 5)),
        "attempts",
        "latest",
        "tensorboard",
    }
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder.parent / "adapter")
    merged, theirs = (
        model.state_dict() for model in (AutoModelForCausalLM.from_pretrained(folder), adapted.merge_and_unload())
    )
    assert [name for name in theirs if not torch.equal(merged[name], theirs[name])] == []


def test_a_run_on_a_packed_base_goes_on_bit_equal_from_adapters_alone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nf4, "DEVICES", ("cpu",))
    run = SmallRun(tmp_path / "undisturbed", lora=PACKED, load_from=base, interval=None)
    run.go()
    stopped = run.another("stopped")
    looks = iter(range(1, 9))
    with monkeypatch.context() as stop:
        stop.setattr(loop, "agreed_seconds_ago", lambda *_: 0.0 if next(looks) == 8 else None)
        with pytest.raises(Preempted):
            stopped.go()
    assert stopped.go().resumed_from == 3
    ours, theirs = stopped.tensors(6), run.tensors(6)
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)] == []
    assert [name for name in theirs if not any(part in name for part in ("lora_", "modules_to_save", "rng"))] == []
    for folder in ("model", "adapter"):
        for file in (run.folder / folder).glob("*.safetensors"):
            assert file.read_bytes() == (stopped.folder / folder / file.name).read_bytes()
    # Its adapters were trained beside other numbers than those of the base as it is.
    with pytest.raises(JobFailure, match="was trained with other options"):
        SmallRun(run.folder, lora=LORA, load_from=base, attempts=1).go()


def test_a_packed_base_is_refused_without_a_gpu_before_anything_is_loaded(base: Path, tmp_path: Path) -> None:
    with pytest.raises(JobFailure, match=r"^spec\.training\.lora\.quantize: nf4 needs an NVIDIA GPU"):
        SmallRun(tmp_path / "run", lora=PACKED, load_from=base).go()
