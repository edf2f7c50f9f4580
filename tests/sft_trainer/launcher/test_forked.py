"""Children that are forks: what their parent may have done before, and that they are as good as any other process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft_trainer import child
from sft_trainer.launcher import forked
from sft_trainer.launcher.exits import TorchrunTask, torchrun_logs
from sft_trainer.launcher.forked import ForkedRank, run_forked

IMPORT = """
import json, sys
from pathlib import Path
from sft_trainer.launcher.forked import import_what_children_need, opened_devices
import_what_children_need()
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
maps = Path("/proc/self/maps").read_text()
print(json.dumps({"devices": opened_devices(), "threads": names, "maps": maps, "modules": [*sys.modules]}))
"""


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of every stage: it tells who and where it is, then stays, or leaves with a code of the environment's."""

    def told(name: str, parent: str, scratch: str) -> int:
        about = {"pid": os.getpid(), "parent": int(parent), "group": os.getpgrp(), "rank": os.environ.get("RANK")}
        file = Path(scratch) / name
        file.with_suffix(".tmp").write_text(json.dumps(about))
        file.with_suffix(".tmp").rename(file)
        os.write(2, b"on standard error\n")
        code = os.environ.get("CODE")
        while code is None:
            time.sleep(1)
        return int(code)

    monkeypatch.setattr(child, "main", told)


def about(file: Path) -> dict[str, int]:
    deadline = time.monotonic() + 300
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    told: dict[str, int] = json.loads(file.read_text())
    return told


def test_what_is_imported_before_the_forks_opens_no_gpu_and_starts_no_thread_that_computes() -> None:
    """The driver's library is there on a machine with a GPU alone; wherever it is, a fork must not find it in use."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    )
    found = json.loads(done.stdout)
    assert found["devices"] == []
    # pyarrow's allocator takes care of its thread in a fork.
    assert sorted(found["threads"]) in (["python"], ["jemalloc_bg_thd", "python"])
    assert "libcuda.so" not in found["maps"]
    assert {"torch", "transformers", "sft_trainer.train.loop"} <= set(found["modules"])
    assert not {"peft", "bitsandbytes"} & set(found["modules"])


TORCHRUN = """
import runpy
from sft_trainer import child, progress
child.main = lambda *_: 0
progress.write_stage = lambda *_: None
runpy.run_module("sft_trainer.launcher.torchrun", run_name="__main__")
"""


def test_a_torchrun_that_fails_before_its_ranks_begin_ends(tmp_path: Path) -> None:
    task = TorchrunTask(
        parent_pid=os.getpid(), nodes=1, processes_per_node=2, node_rank=0, master_address="127.0.0.1",
        master_port=29500, run_id="run", scratch=str(tmp_path), shutdown_seconds=5,
    )  # fmt: skip
    torchrun_logs(tmp_path).write_text("where its folder should be")
    done = subprocess.run([sys.executable, "-c", TORCHRUN, task.to_json()], stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == 1
    assert str(torchrun_logs(tmp_path)) in done.stderr.decode()


PATIENCE = """
import runpy
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.launcher import api

def begin(config, _):
    meeting = RendezvousParameters(
        config.rdzv_backend, config.rdzv_endpoint, config.run_id, config.min_nodes, config.max_nodes,
        **config.rdzv_configs,
    )
    return lambda *_: print(get_rendezvous_handler(meeting).timeout.total_seconds())

api.elastic_launch = begin
runpy.run_module("sft_trainer.launcher.torchrun", run_name="__main__")
"""


def test_a_node_waits_for_the_others_for_longer_than_any_deadline_says(tmp_path: Path) -> None:
    """torch's own patience ends after 15 minutes, as an end without a cause."""
    task = TorchrunTask(
        parent_pid=os.getpid(), nodes=2, processes_per_node=1, node_rank=1, master_address="node-0",
        master_port=29500, run_id="run", scratch=str(tmp_path), shutdown_seconds=5, script=["train.py"],
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", PATIENCE, task.to_json()], stdout=subprocess.PIPE, timeout=300)
    assert float(done.stdout) > 604_800


def test_a_device_that_is_open_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "nvidia0"
    monkeypatch.setattr(forked, "_DEVICES", (str(tmp_path / "nvidia"),))
    with device.open("w"):
        assert forked.opened_devices() == [str(device)]
    assert forked.opened_devices() == []


@pytest.mark.usefixtures("stage")
@pytest.mark.parametrize("code", [0, 65])
def test_a_stage_ends_with_its_own_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    monkeypatch.setenv("CODE", str(code))
    assert run_forked("prepare", tmp_path) == code
    assert about(tmp_path / "prepare")["parent"] == os.getpid()


@pytest.mark.usefixtures("stage")
def test_a_rank_waits_until_it_is_begun_and_has_what_torchrun_gives_it(tmp_path: Path) -> None:
    rank = ForkedRank(tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        rank.wait(timeout=0.3)
    assert rank.poll() is None
    assert not (tmp_path / "rank").exists()
    log = tmp_path / "stderr.log"
    rank.begin({"RANK": "5", "CODE": "3"}, str(log))
    assert rank.wait(timeout=300) == rank.poll() == 3
    told = about(tmp_path / "rank")
    assert (told["pid"], told["rank"], told["parent"]) == (rank.pid, "5", os.getpid())
    # torchrun ends its group.
    assert told["group"] == rank.pid
    assert log.read_text() == "on standard error\n"


@pytest.mark.usefixtures("stage")
@pytest.mark.parametrize("begun", [False, True])
def test_a_rank_that_is_killed_tells_the_signal(tmp_path: Path, begun: bool) -> None:
    rank = ForkedRank(tmp_path)
    if begun:
        rank.begin({}, None)
        about(tmp_path / "rank")
    os.killpg(rank.pid, signal.SIGKILL)
    assert rank.wait(timeout=300) == -signal.SIGKILL


@pytest.mark.usefixtures("stage")
def test_ranks_that_wait_die_with_their_parent(tmp_path: Path) -> None:
    parent = os.fork()
    if parent == 0:
        try:
            ranks = [ForkedRank(tmp_path) for _ in range(2)]
            (tmp_path / "pids").write_text(json.dumps([rank.pid for rank in ranks]))
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(parent, 0)
    pids = json.loads((tmp_path / "pids").read_text())
    assert len(pids) == 2
    deadline = time.monotonic() + 300
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
