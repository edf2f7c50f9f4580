"""Two ranks that were given different data: both end at once, with the file that differs."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_run import TRAINED, SmallRun
from torch.distributed.device_mesh import init_device_mesh

from sft_trainer.train.same_data import DataAccount, difference
from sft_trainer.train.world import World
from sftjob.failure import JobFailure
from tests.sft_trainer.datasets.chats import pair, write_chats


def test_ranks_whose_files_differ_end_before_a_step_with_the_same_words(tmp_path: Path) -> None:
    runs = [SmallRun(tmp_path / f"node-{rank}") for rank in range(2)]
    for run in runs:
        run.options()
    # As many rows, tokens and packs: nothing else would tell.
    write_chats(runs[1].folder / "trained.jsonl", [*TRAINED[:-1], pair("ab" * 4, "z" * 6)])
    mp.spawn(_one_of_two, args=(runs, tmp_path), nprocs=2)
    files = [run.folder / "trained.jsonl" for run in runs]
    said = f"InvalidData {files[0]} and {files[1]}: rank 1 read other rows than rank 0; give all nodes the same file"
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [said, said]


def _one_of_two(rank: int, runs: list[SmallRun], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"), mesh=init_device_mesh("cpu", (2,)))
    said = "trained"
    try:
        runs[rank].go(world=world)
    except JobFailure as failure:
        said = f"{failure.reason} {failure.message}"
    (folder / f"{rank}.txt").write_text(said)
    dist.destroy_process_group()


FIRST = DataAccount([("a.jsonl", "1"), ("b.jsonl", "2")], ("model", "3"), "4")


@pytest.mark.parametrize(
    ("other", "ranks", "said"),
    [
        (
            FIRST._replace(rows=[("a.jsonl", "1"), ("b.jsonl", "9")]),
            [2, 3],
            "b.jsonl: rank 2 and 1 more read other rows than rank 0; give all nodes the same file",
        ),
        (
            FIRST._replace(tokenizer=("model", "9")),
            [1],
            "model: rank 1 read another tokenizer here than rank 0; give all nodes the same",
        ),
        (
            FIRST,
            [1],
            "rank 1 got other datasets, packing, sample_ratio, evaluation or seed than rank 0; give all ranks the "
            "same arguments",
        ),
    ],
)
def test_what_differs_is_told(other: DataAccount, ranks: list[int], said: str) -> None:
    assert difference(FIRST, other._replace(digest="9"), ranks=ranks) == said
