"""N steps, an end without a word, and the rest, on as many ranks or on fewer: as if nothing had been."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_run import TRAINED, SmallRun
from torch.distributed.device_mesh import init_device_mesh

from sft_trainer.train import Trainer, loop
from sft_trainer.train.world import World
from sftjob.failure import JobFailure, Reason
from tests.sft_trainer.datasets.chats import write_chats

EPOCHS = 2


def die_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the step is evaluated or saved."""
    train_step = loop._Run._train_step

    def train_and_die(run: loop._Run, number: int) -> None:
        train_step(run, number)
        if number == step:
            raise ZeroDivisionError

    monkeypatch.setattr(loop._Run, "_train_step", train_and_die)


@pytest.mark.parametrize(("batch", "last"), [(4, 5), pytest.param(2, 10, marks=pytest.mark.full)])
def test_a_run_that_dies_after_any_step_goes_on_bit_equal(
    batch: int, last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch has ten packs: it ends with a step of two packs, and within one of four."""
    plain = SmallRun(tmp_path / "plain", total_epoch=EPOCHS, batch=batch)
    assert plain.go().last_step == last
    told, final = plain.lines(), plain.tensors(last)
    assert [line["step"] for line in told if line["epoch"] in (1, 2)] == ([5, 10] if batch == 2 else [5])
    for step in range(1, last + 1):
        run = plain.another(f"died-{step}", interval=2)
        die_after(step, monkeypatch)
        with pytest.raises(ZeroDivisionError):
            run.go()
        monkeypatch.undo()
        saved = (step - 1) // 2 * 2
        assert run.go().resumed_from == (saved or None)
        for line, expected in zip(run.lines(), told[saved:], strict=True):
            assert {name: line[name] for name in ("step", "loss", "grad_norm", "lr", "samples")} == {
                name: expected[name] for name in ("step", "loss", "grad_norm", "lr", "samples")
            }
        ours = run.tensors(last)
        assert ours.keys() == final.keys()
        for name, tensor in final.items():
            assert torch.equal(ours[name], tensor), (step, name)


def test_what_two_ranks_began_one_ends_in_the_same_order_and_to_the_same_losses(tmp_path: Path) -> None:
    plain = SmallRun(tmp_path / "plain", total_epoch=EPOCHS)
    last = plain.go().last_step
    run = plain.another("run")
    run.options()
    mp.spawn(_one_of_two_that_die, args=(run, tmp_path), nprocs=2)
    run.attempts = 1
    assert run.go().resumed_from == 4
    lines = [*run.lines(attempt=1)[:4], *run.lines()]
    assert [line["samples"] for line in lines] == [line["samples"] for line in plain.lines()]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in plain.lines()], rel=1e-5)
    assert run.manifest(last).world_size == 1
    assert run.manifest(4).world_size == 2


def test_a_checkpoint_of_another_kind_of_device_goes_on_without_its_random_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU's generator has a state of its own, behind that of the CPU's."""
    run = SmallRun(tmp_path / "run", total_steps=4)
    with monkeypatch.context() as patch:
        of_gpu = torch.cat([torch.get_rng_state(), torch.zeros(16, dtype=torch.uint8)])
        patch.setattr(loop, "get_random_state", lambda _: of_gpu)
        patch.setattr(loop._Run, "_export", _die)
        with pytest.raises(ZeroDivisionError):
            run.go()
    assert run.go().resumed_from == 4
    assert "step 4 was saved on another kind of device: what is random begins anew" in caplog.text


def test_auto_resume_goes_on_with_the_newest_run_whatever_else_lies_beside_it(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    work_dir = tmp_path / "work"
    arguments = SmallRun(tmp_path / "run").trainer_arguments() | {
        "work_dir": work_dir, "total_step": 1, "report_to": (), "auto_resume": True,
    }  # fmt: skip
    kept = Trainer(**arguments).fit().parent.rename(work_dir / "good-run")
    model = Trainer(**arguments).fit()
    assert model.parent != kept
    assert f"begins a run in {model.parent}" in caplog.text
    (model.parent / "attempts" / ".ipynb_checkpoints").mkdir()
    (model.parent / "attempts" / ".DS_Store").touch()
    assert Trainer(**arguments).fit() == model
    assert f"goes on with the run in {model.parent}, as attempt 2" in caplog.text
    # Ended between two folders.
    begun = work_dir / "99990101-000000-000000"
    (begun / "attempts").mkdir(parents=True)
    assert Trainer(**arguments).fit() == begun / "hf"
    assert (begun / "attempts" / "1").is_dir()


@pytest.mark.parametrize("manifest", [b"", b"{", b"\xff\xfe", b"\x00"])
def test_a_manifest_that_cannot_be_read_costs_one_checkpoint(tmp_path: Path, manifest: bytes) -> None:
    run = SmallRun(tmp_path / "run", total_steps=4)
    run.go()
    (run.storage / "step-4" / "manifest.json").write_bytes(manifest)
    (run.storage / "latest").write_bytes(b"\xff")
    assert run.go().resumed_from == 3
    assert (run.storage / "step-4.corrupt-a2" / "manifest.json").read_bytes() == manifest


def test_what_is_named_like_a_checkpoint_and_is_none_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", total_steps=3)
    run.go()
    (run.storage / "step-9").write_text("a note")
    (run.storage / "step-007").mkdir()
    assert run.go().resumed_from == 3
    assert (run.storage / "step-9.corrupt-a2").read_text() == "a note"
    assert (run.storage / "step-007").is_dir()


def test_a_checkpoint_that_may_not_be_read_is_told_by_its_folder(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", total_steps=3)
    run.go()
    (run.storage / "step-9").symlink_to("step-9")
    words = r"spec\.checkpoint\.storage: .*/step-9 can't be read or written \(Too many levels of symbolic links\); give"
    with pytest.raises(JobFailure, match=words) as refused:
        run.go()
    assert refused.value.reason is Reason.STORAGE_UNAVAILABLE


def _die(_: object) -> None:
    raise ZeroDivisionError


def test_a_checkpoint_of_other_options_or_other_data_is_left_as_it_is(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", total_steps=4)
    run.go()
    before = {path: path.read_bytes() for path in (run.storage / "step-4").iterdir()}
    words = r"step-4 was trained with other options \(model, lora, optimizer, schedule, .*\); use the same ones, or"
    for changes in ({"lr": 1e-3}, {"batch": 4}, {"total_steps": 5}, {"packing": "none"}):
        with pytest.raises(JobFailure) as refused:
            replace(run, **changes).go()
        if "packing" in changes:
            assert refused.value.reason is Reason.INVALID_DATA
            assert "the data, its template or its packing changed since" in refused.value.message
            assert "restore it, or start a new run with another storage folder" in refused.value.message
        else:
            assert refused.value.reason is Reason.INVALID_CONFIGURATION
            assert re.search(words, refused.value.message)
    write_chats(run.folder / "trained.jsonl", TRAINED[1:])
    with pytest.raises(JobFailure, match=r"the data, its template or its packing changed since .*step-4 was saved"):
        run.go()
    write_chats(run.folder / "trained.jsonl", TRAINED)
    run.go()
    assert {path: path.read_bytes() for path in (run.storage / "step-4").iterdir()} == before
    assert run.checkpoints() == [1, 2, 3, 4]


def _one_of_two_that_die(rank: int, run: SmallRun, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"), mesh=init_device_mesh("cpu", (2,)))
    die_after(5, pytest.MonkeyPatch())
    with pytest.raises(ZeroDivisionError):
        run.go(world=world)
    dist.destroy_process_group()
