"""The proof that each sample was trained once an epoch: of runs that were killed, and of ledgers that are broken."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from typer.testing import CliRunner

from sft_cli.ledger import Account, read_ledger
from sft_cli.main import commands
from sft_cli.refusal import Refusal
from sft_trainer.datasets.pack import Packs, pack_samples
from sft_trainer.train import loop
from sft_trainer.train.ledger import epoch_content
from sft_trainer.train.world import World
from tests.sft_trainer.train.small_run import SmallRun


def write(storage: Path, attempt: int, rank: int, *lines: dict[str, object], **head: object) -> Path:
    """Of a run of two epochs of four samples, one in each of the four packs; two packs a step."""
    file = storage / "attempts" / str(attempt) / f"ledger-{rank}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {"worldSize": 2, "resumedFrom": 0, "totalEpoch": 2, "totalSteps": 4} | head
    if rank == 0:
        whole = {"content": {"samples": [[0, 3, 1]]}} | whole
    file.write_text("".join(json.dumps(line) + "\n" for line in (whole, *lines)))
    return file


def fed(step: int, epoch: int, *samples: int, **more: object) -> dict[str, object]:
    return {"step": step, "packs": [{"epoch": epoch, "samples": list(samples)} | more] if samples else []}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Killed after step 3, gone on with from step 2, on one rank."""
    write(tmp_path, 1, 0, fed(1, 1, 0), fed(2, 1, 2), fed(3, 2, 1))
    write(tmp_path, 1, 1, fed(1, 1, 3), fed(2, 1, 1), fed(3, 2, 0))
    write(tmp_path, 2, 0, fed(3, 2, 0, 1), fed(4, 2, 3, 2), worldSize=1, resumedFrom=2)
    (tmp_path / "step-4").mkdir()
    return tmp_path


def test_steps_that_were_done_again_count_once(storage: Path) -> None:
    assert read_ledger(storage) == Account(
        ["epoch 1: 4 of 4 samples, each once", "epoch 2: 4 of 4 samples, each once"], []
    )


def test_a_line_that_is_gone_is_missed(storage: Path) -> None:
    write(storage, 1, 1, fed(1, 1, 3), fed(3, 2, 0))
    account = read_ledger(storage)
    assert account.problems == [
        "step 2: rank 1 of 2 has not told what it trained, in attempt 1",
        "epoch 1: sample 1 was not trained",
    ]
    assert account.epochs[0] == "epoch 1: 3 of 4 samples"


def test_the_last_line_is_missed_where_a_checkpoint_has_its_step(storage: Path) -> None:
    write(storage, 2, 0, fed(3, 2, 0, 1), worldSize=1, resumedFrom=2)
    assert read_ledger(storage).problems == [
        "step 4: no rank has told what it trained",
        "epoch 2: sample 2 was not trained",
        "epoch 2: sample 3 was not trained",
    ]


def test_a_line_that_stands_twice_and_a_sample_of_other_data_are_found(storage: Path) -> None:
    write(storage, 1, 1, fed(1, 1, 3), fed(2, 1, 1), fed(2, 1, 1, 9))
    assert read_ledger(storage).problems == [
        "epoch 1: sample 1 was trained 2 times instead of once",
        "epoch 1: sample 9 was trained, and the data does not have it",
    ]


def test_a_step_that_not_all_ranks_have_ended_and_a_torn_line_are_not_held_against_a_running_job(
    tmp_path: Path,
) -> None:
    write(tmp_path, 1, 0, fed(1, 1, 0), fed(2, 1, 2))
    with write(tmp_path, 1, 1, fed(1, 1, 3)).open("a") as file:
        file.write('{"step": 2, "pac')
    assert read_ledger(tmp_path) == Account(["epoch 1: 2 of 4 samples, each once; not over yet"], [])


def test_more_faults_than_one_can_read_are_counted(tmp_path: Path) -> None:
    content = {"samples": [[0, 29, 1]]}
    write(tmp_path, 1, 0, fed(1, 1, 0), worldSize=1, totalEpoch=1, totalSteps=1, content=content)
    problems = read_ledger(tmp_path).problems
    assert problems[0] == "epoch 1: sample 1 was not trained"
    assert problems[10:] == ["epoch 1: 19 more like these"]


def test_a_sample_in_pieces_is_whole_when_every_piece_was_trained_and_a_repeated_one_as_often(tmp_path: Path) -> None:
    content = {"samples": [[0, 1, 2], [5, 5, 1]], "cut": [[5, 7]]}
    head = {"worldSize": 1, "totalEpoch": 1, "totalSteps": 2, "content": content}
    right = (fed(1, 1, 0, 1, 5), fed(2, 1, 5, 1, 0, begins=[7, 0, 0]))
    write(tmp_path, 1, 0, *right, **head)
    assert read_ledger(tmp_path) == Account(["epoch 1: 5 of 5 samples, each as often as it was drawn"], [])
    write(tmp_path, 1, 0, right[0], fed(2, 1, 5, 1, begins=[0, 0]), **head)
    assert read_ledger(tmp_path).problems == [
        "epoch 1: sample 0 was trained once instead of 2 times",
        "epoch 1: sample 5 was trained 2 times instead of once",
        "epoch 1: sample 5 from token 7 on was not trained",
    ]


def test_the_command_prints_its_account_and_exits_1_for_a_ledger_that_proves_nothing(storage: Path) -> None:
    told = CliRunner().invoke(commands, ["ledger", str(storage)])
    assert (told.exit_code, told.output.splitlines()[1]) == (0, "epoch 2: 4 of 4 samples, each once")
    (storage / "attempts/1/ledger-1.jsonl").unlink()
    told = CliRunner().invoke(commands, ["ledger", str(storage)])
    assert told.exit_code == 1
    assert "step 1: rank 1 of 2 has not told what it trained, in attempt 1" in told.output
    with pytest.raises(Refusal, match="no ledger in here; name the folder of a run that has begun to train"):
        read_ledger(storage / "attempts")


def test_a_line_that_is_no_line_is_named(storage: Path) -> None:
    file = storage / "attempts/1/ledger-0.jsonl"
    file.write_text(file.read_text() + "{}\n")
    with pytest.raises(Refusal, match=f"{file}:5: not a line of a ledger"):
        read_ledger(storage)


def test_an_epochs_content_is_that_of_its_packs() -> None:
    cut = pack_samples(torch.tensor([5, 9, 4]).numpy(), max_length=10, level="hard", seed=1)
    content = epoch_content(cut)
    assert content.samples == [(0, 2, 1)]
    pieces = {(int(sample), int(begin)) for sample, begin in zip(cut.members, cut.begins, strict=True)}
    assert pieces == {(0, 0), (1, 0), (2, 0), *content.cut}
    assert len(content.cut) == 1
    packs = Packs(*torch.tensor([[4, 3, 9, 3, 8], [0] * 5, [1] * 5]).numpy(), torch.tensor([0, 5]).numpy())
    assert epoch_content(packs).samples == [(3, 3, 2), (4, 4, 1), (8, 9, 1)]


@pytest.mark.parametrize("packing", ["soft", pytest.param("hard", marks=pytest.mark.full)])
def test_a_run_killed_on_two_ranks_and_ended_on_one_has_trained_each_sample_once(tmp_path: Path, packing: str) -> None:
    run = SmallRun(tmp_path / "run", total_epoch=3, interval=2, packing=packing, save_mode="async")
    run.options()
    with pytest.raises(mp.ProcessExitedException):
        mp.spawn(_one_of_two_that_die, args=(run, tmp_path), nprocs=2)
    run.attempts = 1
    assert (run.storage / "step-4").exists()
    assert run.go().resumed_from == 4
    assert len(run.lines(attempt=1)) == 5
    assert read_ledger(run.storage) == Account(
        [f"epoch {epoch}: 24 of 24 samples, each once" for epoch in (1, 2, 3)], []
    )
    file = run.storage / "attempts/1/ledger-1.jsonl"
    head, first, *others = file.read_text().splitlines(keepends=True)
    file.write_text("".join([head, first, first, *others]))
    assert len(read_ledger(run.storage).problems) > 0


def _one_of_two_that_die(rank: int, run: SmallRun, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    go_on = loop._Run._evaluate_if_due

    def die_or_go_on(self) -> bool:
        if self.state.last_step == 5:
            # The save of step 4 went on beside it.
            assert self.saver.settle()
            os.kill(os.getpid(), signal.SIGKILL)
        return go_on(self)

    loop._Run._evaluate_if_due = die_or_go_on
    run.go(world=World(rank=rank, size=2, device=torch.device("cpu"), mesh=init_device_mesh("cpu", (2,))))


def test_the_ledger_of_a_run_whose_length_is_in_steps_is_read(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", total_steps=3)
    run.go()
    account = read_ledger(run.storage)
    assert (account.problems, len(account.epochs)) == ([], 1)
