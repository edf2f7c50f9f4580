"""The cluster comes up in one command, tells what dies, and goes without a trace whatever happened to it."""

import os
import signal
import subprocess
import sys

import pytest
from real_cluster import Machine, assert_nothing_is_left, needs_root_on_linux, run_tool

from cluster import cgroups
from cluster.parts import Part, parts, pid_of
from cluster.place import cache_folder, cluster_folder

pytestmark = [pytest.mark.cluster, needs_root_on_linux]
UP = ("up", "--backend", "built")


def parts_of_this_cluster(*, nodes: int = 1) -> list[Part]:
    return parts(cluster_folder(cache_folder()), cache_folder(), nodes=nodes)


def kill(part: Part) -> None:
    pid = pid_of(part)
    assert pid is not None, f"{part.name} does not live"
    os.kill(pid, signal.SIGKILL)


def test_up_status_and_down_leave_nothing_and_nothing_listens_outside(without_cluster: Machine) -> None:
    up = run_tool(*UP)
    assert up.returncode == 0, up.stdout
    assert "cluster sftjob is up after" in up.stdout
    # Its programs listen in the nodes' own networks: none on an address of this machine.
    assert "ports" not in Machine().more_than(without_cluster)

    before_the_second = cgroups.all_processes().keys()
    second = run_tool(*UP)
    assert second.returncode == 0
    assert second.stdout.startswith("cluster sftjob is up already")
    assert {pid_of(part) for part in parts_of_this_cluster()} <= before_the_second

    other = run_tool(*UP, "--name", "other")
    assert other.returncode == 1
    assert other.stdout == "--name other: cluster sftjob is there; first: python -m cluster down\n"

    status = run_tool("status")
    assert status.returncode == 0, status.stdout
    assert status.stdout.startswith("cluster sftjob (built): 1 nodes\n")
    refused = run_tool("clean")
    assert refused.returncode == 1
    assert "first: python -m cluster down" in refused.stdout

    assert run_tool("down").returncode == 0
    assert_nothing_is_left(without_cluster)
    again = run_tool("status")
    assert again.returncode == 1
    assert again.stdout.startswith("no cluster; start one: python -m cluster up\n")
    assert run_tool("down").returncode == 0


MOMENTS = ["certificates", "programs", "API server", "images on sftjob-1", "node/sftjob-1", "deployment/provisioner"]


@pytest.mark.parametrize(
    "moment", [moment if moment == "API server" else pytest.param(moment, marks=pytest.mark.full) for moment in MOMENTS]
)
def test_an_up_that_is_killed_half_way_leaves_nothing_after_down(moment: str, without_cluster: Machine) -> None:
    command = [sys.executable, "-u", "-m", "cluster", *UP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        for line in up.stdout:
            if line.rstrip().endswith(f"  {moment}"):
                up.kill()
                break
    assert up.returncode == -signal.SIGKILL
    status = run_tool("status")
    assert status.returncode == 1
    assert "cluster sftjob (built): its start is not finished\n" in status.stdout
    assert run_tool("down").returncode == 0
    assert_nothing_is_left(without_cluster)


@pytest.mark.full
def test_an_up_after_one_that_was_killed_starts_anew(without_cluster: Machine) -> None:
    command = [sys.executable, "-u", "-m", "cluster", *UP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        next(line for line in up.stdout if "API server" in line)
        up.kill()
    second = run_tool(*UP)
    assert second.returncode == 0, second.stdout
    assert second.stdout.startswith("an earlier start was not finished: taking it down first\n")
    assert run_tool("status").returncode == 0
    assert run_tool("down").returncode == 0
    assert_nothing_is_left(without_cluster)


def test_what_dies_is_named_and_started_again_and_nothing_is_left_of_it(without_cluster: Machine) -> None:
    assert run_tool(*UP).returncode == 0
    # The one that holds the node comes last: everything dies with it.
    mortal = sorted(parts_of_this_cluster(), key=lambda part: part.holds_node)
    for dead, part in enumerate(mortal, start=1):
        kill(part)
        status = run_tool("status")
        assert status.returncode == 1
        for name in (part.name for part in mortal[:dead]):
            assert f"\n{name}: ended; see " in status.stdout

    mended = run_tool(*UP)
    assert mended.returncode == 0, mended.stdout
    status = run_tool("status")
    assert status.returncode == 0, status.stdout

    for part in mortal:
        kill(part) if pid_of(part) is not None else None
    assert run_tool("down").returncode == 0
    assert_nothing_is_left(without_cluster)


@pytest.mark.full
@pytest.mark.parametrize("number", range(9))
def test_nothing_is_left_whichever_part_was_killed_before(number: int, without_cluster: Machine) -> None:
    assert run_tool(*UP).returncode == 0
    kill(parts_of_this_cluster()[number])
    assert run_tool("down").returncode == 0
    assert_nothing_is_left(without_cluster)
