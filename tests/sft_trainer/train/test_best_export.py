"""`exportBest`: the model that comes out is, to the bit, that of the checkpoint with the lowest evaluation loss."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from small_run import SmallRun, save_base
from torch.distributed.device_mesh import init_device_mesh

from sft_trainer.launcher.publish import finished_before, publish_outputs
from sft_trainer.storage.fence import Fence
from sft_trainer.train import Trainer, loop
from sft_trainer.train.evaluation import Evaluation
from sft_trainer.train.stop import Preempted
from sft_trainer.train.world import World
from sftjob.failure import JobFailure, Reason
from sftjob.options import LoRAConfig
from sftjob.plan import JobReference, LaunchPlan, Mount
from sftjob.spec import SFTJobSpec

BEST = {"every_steps": 2, "export_best": True}


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch):
    """Evaluations that find these losses, one after the other."""

    def give(*values: float) -> None:
        left = list(values)
        monkeypatch.setattr(Evaluation, "mean_loss", lambda *_, **__: left.pop(0))

    return give


def assert_weights_are_those_of(run: SmallRun, step: int) -> None:
    """What torch's own reader finds in the checkpoint, under the names of a model folder."""
    exported = load_file(run.exported / "model.safetensors")
    saved = {
        name.removeprefix("model."): tensor
        for name, tensor in run.tensors(step).items()
        if name.startswith("model.") and name != "model.lm_head.weight"
    }
    assert exported.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(exported[name], tensor), name


def test_the_best_checkpoint_is_exported_and_told(tmp_path: Path, losses) -> None:
    losses(3.0, 1.5, 2.0)
    run = SmallRun(tmp_path / "run", BEST, interval=2, keep_last=2)
    state = run.go()
    assert_weights_are_those_of(run, 4)
    assert not torch.equal(run.tensors(4)["model.model.norm.weight"], run.tensors(6)["model.model.norm.weight"])
    final = run.manifest(6)
    assert (final.exported_step, state.final_digest) == (4, final.digest())
    card = ModelCard.load(run.exported / "README.md").text
    tokens = sum(line["tokens"] for line in run.lines() if "loss" in line and line["step"] <= 4)
    assert "| Steps | 4 of 6: the lowest evaluation loss |" in card
    assert f"| Tokens | {tokens:,} |" in card
    assert "| Evaluation loss | 1.5000 |" in card


def test_without_the_option_and_where_the_last_step_is_the_best_that_is_exported(tmp_path: Path, losses) -> None:
    losses(1.0, 2.0, 3.0)
    run = SmallRun(tmp_path / "last", {"every_steps": 2}, interval=2)
    run.go()
    assert_weights_are_those_of(run, 6)
    losses(3.0, 2.0, 1.0)
    run = run.another("best", evaluation=BEST)
    run.go()
    assert_weights_are_those_of(run, 6)
    assert run.manifest(6).exported_step is None
    assert "| Steps | 6 |" in ModelCard.load(run.exported / "README.md").text


# Before the best evaluation, after it, and when all is trained and nothing exported.
@pytest.mark.parametrize("place", [3, 11, 15])
def test_after_a_resume_the_same_model_is_exported(place: int, tmp_path: Path, losses, monkeypatch) -> None:
    losses(1.5, 3.0, 2.0)
    run = SmallRun(tmp_path / "undisturbed", BEST, interval=2)
    run.go()
    stopped = run.another("stopped")
    looks = iter(range(1, 100))
    monkeypatch.setattr(loop, "agreed_seconds_ago", lambda *_: 0.0 if next(looks) == place else None)
    if place == 15:
        monkeypatch.setattr(loop, "write_export", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    losses(1.5, 3.0, 2.0)
    with pytest.raises((Preempted, KeyboardInterrupt)):
        stopped.go()
    done = len(stopped.evaluations())
    monkeypatch.undo()
    losses(*(1.5, 3.0, 2.0)[done:])
    stopped.go()
    for file in ("model.safetensors", "README.md"):
        assert (stopped.exported / file).read_bytes() == (run.exported / file).read_bytes()
    assert_weights_are_those_of(stopped, 2)


def test_a_step_that_only_a_stop_has_saved_is_never_the_best(tmp_path: Path, losses, monkeypatch) -> None:
    found = (3.0, 2.0, 1.0, 1.5, 2.5, 2.6)
    losses(*found)
    run = SmallRun(tmp_path / "undisturbed", BEST | {"every_steps": 1}, interval=2, keep_last=2)
    run.go()
    stopped = run.another("stopped")
    losses(*found)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "agreed_seconds_ago", lambda *_: 0.0 if stopped.state.last_step == 3 else None)
        with pytest.raises(Preempted):
            stopped.go()
    assert stopped.checkpoints() == [2, 3]
    losses(*found[3:])
    stopped.go()
    assert stopped.checkpoints() == run.checkpoints() == [4, 6]
    assert_weights_are_those_of(stopped, 4)
    for file in ("model.safetensors", "README.md"):
        assert (stopped.exported / file).read_bytes() == (run.exported / file).read_bytes()


def test_a_model_that_is_there_is_not_told_to_be_another_one(tmp_path: Path, losses, caplog) -> None:
    """`export_best`, switched on for a run that has ended, and off again."""
    caplog.set_level(logging.INFO)
    losses(1.0, 2.0, 3.0)
    run = SmallRun(tmp_path / "run", {"every_steps": 2})
    plain = run.trainer_arguments() | {
        "work_dir": tmp_path / "work", "total_step": 6, "checkpoint_interval": 2, "checkpoint_maxkeep": -1,
        "report_to": (), "auto_resume": True,
    }  # fmt: skip
    run.evaluation = BEST
    best = plain | {"dataloader_cfg": run.options().dataloader_cfg}
    model = Trainer(**plain).fit()
    last = (model / "model.safetensors").read_bytes()
    words = r"/hf is the model of another checkpoint, of step 6, than the one that .* choose, of step 2; move it"
    for _ in range(2):
        with pytest.raises(JobFailure, match=words) as refused:
            Trainer(**best).fit()
    assert refused.value.reason is Reason.STORAGE_REFUSED
    assert "is exported" not in caplog.text
    assert Trainer(**plain).fit() == model
    model.rename(tmp_path / "elsewhere")
    assert Trainer(**best).fit() == Trainer(**best).fit() == model
    assert "| Steps | 2 of 6: the lowest evaluation loss |" in ModelCard.load(model / "README.md").text
    assert (model / "model.safetensors").read_bytes() != last
    with pytest.raises(JobFailure, match=r"of step 2, than the one that .* choose, of step 6; move it"):
        Trainer(**plain).fit()


def test_an_early_end_exports_the_step_before_the_loss_rose(tmp_path: Path, losses) -> None:
    losses(2.0, 3.0, 4.0)
    run = SmallRun(tmp_path / "run", BEST | {"patience": 2}, interval=2, total_steps=40, keep_last=2)
    assert run.go().last_step == 6
    assert_weights_are_those_of(run, 2)
    assert "| Steps | 2 of 6: the lowest evaluation loss |" in ModelCard.load(run.exported / "README.md").text


def test_the_next_best_is_exported_where_the_best_does_not_verify(tmp_path: Path, losses) -> None:
    losses(1.0, 1.5, 2.0)
    run = SmallRun(tmp_path / "run", BEST, interval=2)
    run.go()
    [shard] = (run.storage / "step-2").glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:-1])
    run.exported.rename(run.folder / "before")
    state = run.go()
    assert_weights_are_those_of(run, 4)
    assert (run.manifest(6).exported_step, state.final_digest) == (4, run.manifest(6).digest())


def test_a_volume_that_fills_up_when_the_choice_is_written_down_is_told_as_one(tmp_path: Path, losses) -> None:
    losses(1.0, 3.0, 2.0)
    run = SmallRun(tmp_path / "run", {"every_steps": 2}, interval=2)
    run.go()
    run.evaluation = BEST
    text = run.storage / "step-6" / f".manifest.json.{os.getpid()}"
    text.symlink_to("/dev/full")
    with pytest.raises(JobFailure, match=r"spec\.checkpoint\.storage: .*step-6 can't be .* free some room") as told:
        run.go()
    assert told.value.reason is Reason.STORAGE_FULL
    assert run.manifest(6).exported_step is None


@pytest.mark.full
def test_with_lora_adapter_and_merged_model_are_those_of_the_best_step(tmp_path: Path, losses) -> None:
    losses(1.0, 2.0, 3.0)
    run = SmallRun(tmp_path / "run", BEST, interval=2, load_from=save_base(tmp_path / "base"), lora=LoRAConfig(rank=2))
    run.go()
    saved = run.tensors(2)
    adapter = load_file(run.adapter / "adapter_model.safetensors")
    for name, tensor in adapter.items():
        parts = name.removeprefix("base_model.model.").rsplit(".", 1)
        assert torch.equal(tensor, saved[f"model.{parts[0]}.default.{parts[1]}"]), name
    # The same number of steps, and the last of them exported.
    losses()
    short = run.another("short", evaluation=None, total_steps=2)
    short.go()
    assert (run.exported / "model.safetensors").read_bytes() == (short.exported / "model.safetensors").read_bytes()


@pytest.mark.full
def test_on_two_ranks_the_export_is_that_of_the_checkpoint_too(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", BEST, interval=2)
    run.options()
    mp.spawn(_one_of_two, args=(run, tmp_path), nprocs=2)
    run.attempts = 1
    assert run.manifest(6).exported_step == 2
    assert_weights_are_those_of(run, 2)


def _one_of_two(rank: int, run: SmallRun, folder: Path) -> None:
    torch.set_num_threads(1)
    found = [1.0, 2.0, 3.0]
    Evaluation.mean_loss = lambda *_, **__: found.pop(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    run.go(world=World(rank=rank, size=2, device=torch.device("cpu"), mesh=init_device_mesh("cpu", (2,))))
    dist.destroy_process_group()


def test_what_is_published_names_the_step_and_its_checkpoint_and_a_later_attempt_knows_it(
    tmp_path: Path, losses
) -> None:
    losses(1.0, 2.0, 3.0)
    run = SmallRun(tmp_path / "run", BEST, interval=2)
    run.go()
    run.exported.rename(run.folder / "model.tmp-a1")
    spec = {
        "model": {"loadFrom": {"uri": "pvc://m/m"}},
        "data": {"datasets": [{"name": "d", "uri": "pvc://d/d"}]},
        "output": [{"uri": "pvc://c/model"}],
    }
    plan = LaunchPlan(
        job=JobReference(namespace="default", name="small", uid="tests"),
        attempt=1,
        spec=SFTJobSpec.model_validate(spec),
        mounts=[
            Mount(uri="pvc://c/model", path=str(run.exported)),
            Mount(uri="pvc://c/model.checkpoints", path=str(run.storage)),
        ],
    )
    [artifact] = publish_outputs(plan, Fence(run.storage, "tests", 1), on_detail=lambda _: None)
    assert artifact.step == 2
    assert run.manifest(2).digest() in (run.exported / "sftjob-manifest.json").read_text()
    finished = finished_before(plan)
    assert finished is not None
    assert finished.artifacts == [artifact]
    assert (finished.report.last_step, finished.report.final_digest) == (6, run.manifest(6).digest())
    (run.storage / "step-2" / "manifest.json").unlink()
    assert finished_before(plan) is None


@pytest.mark.parametrize("interval", [None, 3])
def test_checkpoints_that_nobody_evaluates_are_refused(interval: int | None, tmp_path: Path) -> None:
    with pytest.raises(JobFailure, match=f"checkpoint_interval: {interval} is not a multiple of") as refused:
        SmallRun(tmp_path / "run", BEST, interval=interval).go()
    assert refused.value.reason is Reason.INVALID_CONFIGURATION


def test_a_run_whose_checkpoints_were_lost_comes_to_the_model_that_is_there(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run")
    arguments = run.trainer_arguments() | {
        "work_dir": tmp_path / "work", "total_step": 2, "report_to": (), "auto_resume": True,
    }  # fmt: skip
    model = Trainer(**arguments).fit()
    shutil.rmtree(model.parent / "step-2")
    assert Trainer(**arguments).fit() == model
