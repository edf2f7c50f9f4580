"""Two ranks on two nodes that share nothing but a bucket: each with its own folder, and one in place of both later."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_run import SmallRun
from test_best_export import assert_weights_are_those_of
from torch.distributed.device_mesh import init_device_mesh

from sft_trainer.storage.fence import Fence
from sft_trainer.train.evaluation import Evaluation
from sft_trainer.train.world import World
from sftjob.failure import JobFailure
from tests.s3_server import PATIENCE_SECONDS, S3Server

pytestmark = pytest.mark.usefixtures("s3_credentials")

STORAGE = "tuned.checkpoints"


@pytest.fixture
def nodes(tmp_path: Path) -> Callable[..., list[SmallRun]]:
    def make(*given, **options) -> list[SmallRun]:
        first = SmallRun(tmp_path / "node-0", *given, uri=f"s3://bucket/{STORAGE}", **options)
        both = [first, first.another("node-1")]
        for run in both:
            run.options()
        return both

    return make


def go(runs: list[SmallRun], folder: Path, *, join: bool = True, secret: str | None = None):
    """One attempt of both nodes; `secret` is that of the second, where it has another one."""
    context = mp.spawn(_one_of_two, args=(runs, folder, secret), nprocs=2, join=join)
    for run in runs:
        run.attempts += 1
    return context


def said(folder: Path) -> list[str]:
    return [(folder / f"{rank}.txt").read_text() for rank in range(2)]


def fetch(run: SmallRun) -> int | None:
    """As the launcher of node 0 does before an attempt."""
    attempt = run.attempts + 1
    fence = Fence(run.storage, "tests", attempt, run.uri)
    return fence.remote.fetch_newest(run.storage, attempt=attempt, on_detail=lambda _: None)


def _one_of_two(rank: int, runs: list[SmallRun], folder: Path, secret: str | None) -> None:
    torch.set_num_threads(1)
    environment = pytest.MonkeyPatch()
    if secret and rank == 1:
        environment.setenv("AWS_SECRET_ACCESS_KEY", secret)
    found = [1.0, 2.0, 3.0]
    environment.setattr(Evaluation, "mean_loss", lambda *_, **__: found.pop(0))
    dist.init_process_group("gloo", init_method=f"file://{folder}/{runs[0].attempts}", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"), mesh=init_device_mesh("cpu", (2,)))
    told = "trained"
    try:
        runs[rank].go(world=world)
    except JobFailure as failure:
        told = f"{failure.reason} {failure.message}"
    (folder / f"{rank}.txt").write_text(told)
    dist.destroy_process_group()


def test_each_node_stores_what_its_ranks_wrote_and_one_node_alone_goes_on_from_it(
    nodes: Callable[..., list[SmallRun]], s3: S3Server, tmp_path: Path
) -> None:
    runs = nodes(save_mode="async")
    go(runs, tmp_path)
    assert said(tmp_path) == ["trained", "trained"]
    stored = {key.removeprefix(f"{STORAGE}/step-4/") for key in s3.listed(f"{STORAGE}/step-4")}
    assert stored == {".metadata", "__0_0.distcp", "__1_0.distcp", "manifest.json"}
    for rank in range(2):
        assert b'"step":6' in s3.get(f"{STORAGE}/attempts/1/ledger-{rank}.jsonl")
    order = [one.key.rpartition("/")[2] for one in s3.asked("PUT", "/step-4/")]
    assert order[-2:] == [".metadata", "manifest.json"]
    # What lies on the other node is of no use to anyone.
    assert {path.name for path in runs[1].storage.iterdir()} == {"attempts"}

    for step in (5, 6):
        s3.delete(f"{STORAGE}/step-{step}/manifest.json")
    alone = runs[0].another("alone")
    alone.attempts = 1
    assert fetch(alone) == 4
    assert alone.go().resumed_from == 4
    assert [line["loss"] for line in alone.lines()] == pytest.approx(
        [line["loss"] for line in runs[0].lines(attempt=1)[4:]], rel=1e-5
    )
    # What the first attempt did not publish is gone, and was saved again by one rank.
    assert alone.manifest(6).world_size == 1
    assert f"{STORAGE}/step-6/__1_0.distcp" not in s3.listed()


def test_what_one_node_can_t_store_ends_both_with_the_same_words_and_no_checkpoint(
    nodes: Callable[..., list[SmallRun]], s3: S3Server, tmp_path: Path
) -> None:
    go(nodes(), tmp_path, secret="another one")
    first, second = said(tmp_path)
    assert first == second
    assert first.startswith(f"StorageUnavailable spec.checkpoint.storage: s3://bucket/{STORAGE} is refused by")
    assert [key for key in s3.listed(STORAGE) if key.endswith("manifest.json")] == []


@pytest.mark.full
def test_a_superseded_attempt_publishes_nothing_though_all_files_are_there(
    nodes: Callable[..., list[SmallRun]], s3: S3Server, tmp_path: Path
) -> None:
    held = s3.hold("PUT", r"step-2/__1_0\.distcp")
    context = go(nodes(), tmp_path, join=False)
    assert held.reached.wait(PATIENCE_SECONDS)
    s3.put(f"{STORAGE}/attempts/2/node-0.json", b"{}")
    held.released.set()
    while not context.join():
        pass
    words = f"Superseded attempt 1 gives way: attempt 2 uses s3://bucket/{STORAGE}"
    assert said(tmp_path) == [words, words]
    assert f"{STORAGE}/step-2/__1_0.distcp" in s3.listed()
    assert f"{STORAGE}/step-2/manifest.json" not in s3.listed()


def test_ranks_whose_nodes_have_fetched_different_checkpoints_end_with_the_same_words(
    nodes: Callable[..., list[SmallRun]], tmp_path: Path
) -> None:
    runs = nodes(total_steps=2)
    go(runs, tmp_path)
    assert fetch(runs[0]) == 2
    go(runs, tmp_path)
    words = (
        f"StorageUnavailable spec.checkpoint.storage: of s3://bucket/{STORAGE} rank 1 has no checkpoint in its copy, "
        "and rank 0 goes on from step-2 of attempt 1; the next attempt fetches it again"
    )
    assert said(tmp_path) == [words, words]


@pytest.mark.full
def test_the_best_checkpoint_is_fetched_by_all_nodes_and_exported(
    nodes: Callable[..., list[SmallRun]], s3: S3Server, tmp_path: Path
) -> None:
    runs = nodes({"every_steps": 2, "export_best": True}, interval=2, keep_last=2)
    go(runs, tmp_path)
    assert said(tmp_path) == ["trained", "trained"]
    assert b'"exportedStep": 2' in s3.get(f"{STORAGE}/step-6/manifest.json")
    assert {path.name for path in runs[1].storage.glob("step-*")} == {"step-2"}
    assert_weights_are_those_of(runs[0], 2)
