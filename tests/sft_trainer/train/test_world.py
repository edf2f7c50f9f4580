"""Real ranks over gloo, in a world that is opened as the launcher's ranks and a script's own open theirs."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from small_run import SmallRun, become_rank, meeting_place

from sft_trainer.train import checkpoint
from sft_trainer.train import world as world_module
from sft_trainer.train.world import open_world
from sftjob.failure import JobFailure


def test_ranks_that_a_launcher_watches_wait_for_one_that_is_slow_to_save(tmp_path: Path) -> None:
    assert _ends(tmp_path, is_watched=True) == ["step 2", "step 2"]


def test_a_rank_that_fails_alone_does_not_wait_for_the_others_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's end of a group is one of all ranks of a node, and these are in the collectives that it has left."""
    left: list[str] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: left.append("entered"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append("left"))
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 0, 2)]))
    monkeypatch.setattr(world_module, "init_device_mesh", lambda *_: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ZeroDivisionError), open_world(is_watched=True):
        raise ZeroDivisionError
    assert left == ["entered"]
    with open_world(is_watched=True):
        pass
    assert left == ["entered", "entered", "left"]


@pytest.mark.parametrize("has_own_group", [False, True])
def test_ranks_open_one_world_after_the_other(has_own_group: bool, tmp_path: Path) -> None:
    store = meeting_place()
    mp.spawn(_in_four_worlds, args=(has_own_group, tmp_path, store.port), nprocs=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["4 x 1.0, open: " + str(has_own_group)] * 2


def _in_four_worlds(rank: int, has_own_group: bool, folder: Path, port: int) -> None:
    become_rank(rank, port=port)
    if has_own_group:
        dist.init_process_group("gloo")
    sums = []
    for _ in range(4):
        with open_world(is_watched=False) as world:
            sums.append(world.sum(float(rank)))
            dist.new_group(backend="gloo")
    assert len(set(sums)) == 1
    (folder / f"{rank}.txt").write_text(f"{len(sums)} x {sums[0]}, open: {dist.is_initialized()}")


@pytest.mark.full
def test_ranks_that_nobody_watches_wait_as_long_as_torch_has_them_wait(tmp_path: Path) -> None:
    assert "timed out" in _ends(tmp_path, is_watched=False)[1].lower()


def _ends(folder: Path, *, is_watched: bool) -> list[str]:
    run = SmallRun(folder / "run", save_mode="async", total_steps=2)
    run.options()
    store = meeting_place()
    mp.spawn(_one_of_two, args=(run, folder, is_watched, store.port), nprocs=2)
    return [(folder / f"{rank}.txt").read_text() for rank in range(2)]


def _one_of_two(rank: int, run: SmallRun, folder: Path, is_watched: bool, port: int) -> None:
    """torch's own timeout is 2 s, and rank 0 takes longer to write a checkpoint."""
    become_rank(rank, port=port)

    def late(work: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_work(*arguments: Any, **named: Any) -> Any:
            give_up = time.monotonic() + (5 if is_watched else 120)
            while rank == 0 and time.monotonic() < give_up and not (folder / "1.txt").exists():
                time.sleep(0.1)
            return work(*arguments, **named)

        return wait_and_work

    dist.distributed_c10d.default_pg_timeout = timedelta(seconds=2)
    # The first has rank 1's thread wait for rank 0's, the second its loop.
    checkpoint.store_files = late(checkpoint.store_files)
    checkpoint.publish_checkpoint = late(checkpoint.publish_checkpoint)
    try:
        with open_world(is_watched=is_watched) as world:
            end = f"step {run.go(world=world).saved_step}"
    except (RuntimeError, JobFailure) as error:
        end = str(error)
    (folder / f"{rank}.txt").write_text(end)
