"""The launcher's watch over real processes that stand still as ranks do, below a parent in torchrun's place."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft_trainer.launcher import sections, watch
from sft_trainer.launcher.children import Children
from sft_trainer.launcher.placement import Placement
from sft_trainer.launcher.watch import RankWatch
from sft_trainer.marks import Mark, read_marks
from sft_trainer.stop import StopSignal
from sft_trainer.storage.fence import NodeClaim
from sftjob import names
from sftjob.base import utc_now
from sftjob.failure import Reason
from sftjob.outcome import Outcome
from sftjob.plan import JobReference, LaunchPlan, Mount
from sftjob.progress import Stage
from sftjob.spec import SFTJobSpec
from tests.s3_server import S3Server
from tests.sft_trainer.download_node import until

TORCHRUN = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ranks = [subprocess.Popen([sys.executable, "-m", "rank", str(os.getpid()), sys.argv[1], str(rank), stage])
         for rank, stage in enumerate(sys.argv[2:])]
for rank in ranks:
    rank.wait()
"""
RANK = """
import os, signal, sys, time
from pathlib import Path
from sft_trainer.death import die_with_parent
from sft_trainer.marks import Marker
from sft_trainer.stacks import answer_with_stacks
from sftjob.progress import Stage

def waits_for_the_other():
    while not Path(scratch, "go").exists():
        time.sleep(0.05)
    marker.mark()
    time.sleep(600)

die_with_parent(int(sys.argv[1]))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
scratch, rank = Path(sys.argv[2]), int(sys.argv[3])
answer_with_stacks(scratch, rank)
marker = Marker(scratch, rank)
marker.mark(Stage(sys.argv[4]), step=7)
if rank == 0:
    marker.mark()
waits_for_the_other()
"""
STORAGE = "pvc://results/job"


class Node:
    """A launcher's watch, called as often as its ranks stand where they are meant to."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 1,
        attempt: int = 1,
        deadline: int | None = None,
        storage: str = STORAGE,
    ) -> None:
        self.scratch, self.storage = folder / "scratch", folder / "storage"
        spec = SFTJobSpec.model_validate(
            {
                "model": {"loadFrom": {"uri": "pvc://models/base"}},
                "data": {"datasets": [{"name": "chats", "uri": "pvc://data/chats.jsonl"}]},
                "output": [{"uri": "pvc://results/model"}],
                "checkpoint": {"storage": storage},
                "compute": {"nodes": nodes, "processesPerNode": 2},
                "runPolicy": {"progressDeadlineSeconds": deadline},
            }
        )
        reference = JobReference(namespace="default", name="tiny", uid="uid-1")
        mounts = [Mount(uri=storage, path=str(self.storage))]
        self.plan = LaunchPlan(job=reference, attempt=attempt, spec=spec, mounts=mounts)
        names.attempt_folder(self.storage, attempt).mkdir(parents=True)
        self.stop = StopSignal()
        self.children = Children(grace_seconds=12, scratch=self.scratch, stop=self.stop)
        (folder / "torchrun.py").write_text(TORCHRUN)
        (folder / "rank.py").write_text(RANK)
        self.path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        self.looks = 0

    def run(self, *stages: Stage, meanwhile: Callable[[RankWatch], None] = lambda _: None) -> RankWatch:
        """Until the watch, or `meanwhile`, has ended the ranks. It begins once all of them stand still."""
        placement = Placement(0, "127.0.0.1", 0, self.scratch, self.scratch / "outcome.json", "127.0.0.1:0", None)
        watched = RankWatch(self.plan, placement, self.children)

        def look() -> None:
            marks = read_marks(self.scratch)
            if len(marks) == len(stages) and marks[0].place >= 2:
                self.looks += 1
                watched.look()
                meanwhile(watched)

        arguments = [str(self.scratch), *stages]
        self.children.run("torchrun", arguments, environment={"PYTHONPATH": self.path}, meanwhile=look)
        return watched

    def marks(self) -> list[Mark]:
        return read_marks(self.scratch)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An hour is a second; and the signal that a launcher takes is given back."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sections, "UNKNOWN_SECONDS", 1.0)
    monkeypatch.setattr(watch, "_OTHERS_SECONDS", 0.0)
    monkeypatch.setattr(watch, "_ANSWER_SECONDS", 120.0)
    yield
    signal.signal(signal.SIGTERM, before)


def test_ranks_that_stand_still_are_ended_and_the_one_behind_is_named_with_its_frames(tmp_path: Path) -> None:
    watched = Node(tmp_path).run(Stage.TRAINING, Stage.TRAINING)
    assert watched.is_hang
    standstill = watched.standstill
    assert standstill is not None
    assert (standstill.rank, standstill.stage, standstill.step, standstill.place) == (1, Stage.TRAINING, 7, 1)
    assert standstill.frames[0].startswith("waits_for_the_other (")
    assert standstill.stacks == f"{STORAGE}/attempts/1/stacks-node-0.txt"
    text = (tmp_path / "storage" / "attempts" / "1" / "stacks-node-0.txt").read_text()
    assert text.count("in waits_for_the_other") == 2


@pytest.mark.parametrize("deadline", [0, 600])
def test_where_the_user_has_said_how_long_the_launcher_ends_nothing(tmp_path: Path, deadline: int) -> None:
    node = Node(tmp_path, deadline=deadline)
    watched = node.run(
        Stage.TRAINING, Stage.TRAINING, meanwhile=lambda _: node.children.kill() if node.looks == 6 else None
    )
    assert (watched.is_hang, watched.standstill) == (False, None)


def test_ranks_that_wait_for_one_that_is_elsewhere_in_the_script_are_ended(tmp_path: Path) -> None:
    assert Node(tmp_path).run(Stage.TRAINING, Stage.RUNNING_SCRIPT).is_hang


def test_a_script_of_which_nobody_knows_what_it_does_is_never_ended(tmp_path: Path) -> None:
    node = Node(tmp_path)
    watched = node.run(
        Stage.RUNNING_SCRIPT,
        Stage.RUNNING_SCRIPT,
        meanwhile=lambda _: node.children.kill() if node.looks == 6 else None,
    )
    assert (watched.is_hang, watched.standstill) == (False, None)


def test_a_node_is_ended_only_when_the_others_stand_still_too(tmp_path: Path) -> None:
    node = Node(tmp_path, nodes=3)
    waited = []

    def others_follow(watched: RankWatch) -> None:
        if watched.standstill and not watched.is_hang:
            waited.append(node.looks)
        if len(waited) == 3:
            names.stacks(node.storage, 1, 1).touch()
            outcome = Outcome(
                attempt=1,
                node_rank=2,
                reason=Reason.SUCCEEDED,
                exit_code=0,
                started_at=utc_now(),
                ended_at=utc_now(),
            )
            claim = NodeClaim(job_uid="uid-1", attempt=1, node_rank=2, outcome=outcome)
            names.node_claim(node.storage, 1, 2).write_text(claim.to_json())

    assert node.run(Stage.TRAINING, Stage.TRAINING, meanwhile=others_follow).is_hang
    assert len(waited) == 3


@pytest.mark.usefixtures("s3_credentials")
def test_of_nodes_that_share_a_bucket_each_sees_there_that_the_others_stand_still(tmp_path: Path, s3: S3Server) -> None:
    node = Node(tmp_path, nodes=2, storage="s3://bucket/job")
    waited = []

    def other_follows(watched: RankWatch) -> None:
        if watched.standstill and not watched.is_hang:
            waited.append(node.looks)
        if len(waited) == 3:
            # That the bucket does not answer is no word of a hang.
            s3.busy[:] = [403] * 4
        if len(waited) == 6:
            s3.busy.clear()
            s3.put("job/attempts/1/stacks-node-1.txt", b"in waits_for_ever")

    watched = node.run(Stage.TRAINING, Stage.TRAINING, meanwhile=other_follows)
    assert (watched.is_hang, len(waited)) == (True, 6)
    assert watched.standstill is not None
    assert watched.standstill.stacks == "s3://bucket/job/attempts/1/stacks-node-0.txt"
    assert b"in waits_for_the_other" in s3.get("job/attempts/1/stacks-node-0.txt")


@pytest.mark.usefixtures("s3_credentials")
def test_in_a_bucket_too_it_is_taken_back_and_where_that_fails_it_is_tried_again(tmp_path: Path, s3: S3Server) -> None:
    node = Node(tmp_path, nodes=2, storage="s3://bucket/job")
    said = []

    def goes_on(watched: RankWatch) -> None:
        if watched.standstill is None and said:
            node.children.kill()
        elif watched.standstill and not said:
            said.append(s3.listed("job"))
            before = node.marks()
            (node.scratch / "go").touch()
            until(lambda: node.marks() != before)
            s3.busy = [403]
        elif watched.standstill:
            said.append(s3.listed("job"))

    watched = node.run(Stage.TRAINING, Stage.TRAINING, meanwhile=goes_on)
    assert len(said) >= 2
    assert said[0] == said[1] == ["job/attempts/1/stacks-node-0.txt"]
    assert (watched.is_hang, s3.listed("job")) == (False, [])


def test_a_node_whose_ranks_go_on_takes_back_what_it_said(tmp_path: Path) -> None:
    node = Node(tmp_path, nodes=2)
    said = []

    def goes_on(watched: RankWatch) -> None:
        if watched.standstill is None and said:
            node.children.kill()
        elif watched.standstill and not said:
            said.append(names.stacks(node.storage, 1, 0).exists())
            (node.scratch / "go").touch()

    watched = node.run(Stage.TRAINING, Stage.TRAINING, meanwhile=goes_on)
    assert (said, watched.is_hang, names.stacks(node.storage, 1, 0).exists()) == ([True], False, False)


def test_each_hang_of_the_three_attempts_before_doubles_the_patience(tmp_path: Path) -> None:
    node = Node(tmp_path, attempt=6)
    for attempt, reason in ((2, Reason.HANG), (3, Reason.HANG), (4, Reason.PREEMPTED), (5, Reason.HANG)):
        names.attempt_folder(node.storage, attempt).mkdir()
        outcome = Outcome(
            attempt=attempt, node_rank=0, reason=reason, exit_code=70, started_at=utc_now(), ended_at=utc_now()
        )
        claim = NodeClaim(job_uid="uid-1", attempt=attempt, node_rank=0, outcome=outcome)
        names.node_claim(node.storage, attempt, 0).write_text(claim.to_json())
    seconds = []

    def note(watched: RankWatch) -> None:
        if watched.standstill:
            seconds.append(watched.standstill.seconds)

    node.run(Stage.TRAINING, Stage.TRAINING, meanwhile=note)
    assert seconds[0] >= 4


def test_ranks_that_do_not_react_to_a_stop_leave_their_stacks(tmp_path: Path) -> None:
    node = Node(tmp_path, deadline=0)

    def is_stopped(watched: RankWatch) -> None:
        if node.looks == 1:
            os.kill(node.marks()[1].pid, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGTERM)
        elif watched.standstill:
            node.children.kill()

    watched = node.run(Stage.TRAINING, Stage.TRAINING, meanwhile=is_stopped)
    assert not watched.is_hang
    assert watched.standstill is not None
    assert (watched.standstill.rank, watched.standstill.state) == (1, "T")
    assert names.stacks(node.storage, 1, 0).exists()


def test_ranks_that_react_to_a_stop_leave_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path, deadline=0)
    reacted = []
    # Half of the time for saving is over only when they have reacted.
    monkeypatch.setattr(Children, "shutdown_seconds", property(lambda _: 0 if reacted else 1000))

    def is_stopped(_: RankWatch) -> None:
        if node.looks == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        elif node.looks == 3:
            (node.scratch / "go").touch()
        elif [mark.place for mark in node.marks()] == [3, 2]:
            reacted.append(node.looks)
            if len(reacted) == 3:
                node.children.kill()

    watched = node.run(Stage.TRAINING, Stage.TRAINING, meanwhile=is_stopped)
    assert (len(reacted), watched.standstill) == (3, None)
