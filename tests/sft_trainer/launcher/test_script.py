"""A rank that runs a job's own script: as Python would, with a report of what went wrong, and never an orphan."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft_trainer.launcher.exits import log_tail, torchrun_logs
from sft_trainer.launcher.script import refuse_unusable_script, script_command, script_environment
from sft_trainer.report import Report, read_reports
from sftjob.failure import JobFailure, Reason
from sftjob.plan import JobReference, LaunchPlan, Mount


def rank(scratch: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the text as rank 1 does."""
    script = scratch / "own.py"
    script.write_text(text)
    command = ["-u", "-P", "-m", "sft_trainer.child", "script", str(os.getpid()), scratch, script, *arguments]
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"RANK": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("pass", 0),
        ("import sys; sys.exit()", 0),
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(3)", 3),
        ("import sys; sys.exit('out of ideas')", 1),
        ("import os; os._exit(4)", 4),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15),
    ],
)
def test_a_script_ends_with_the_exit_code_that_python_gives_it(tmp_path: Path, text: str, code: int) -> None:
    done = rank(tmp_path, text)
    assert done.returncode == code, done.stderr
    assert read_reports(tmp_path) == {}
    assert ("out of ideas" in done.stderr) == (code == 1)


def test_what_a_rank_said_last_is_its_errors_or_else_its_output(tmp_path: Path) -> None:
    logs = torchrun_logs(tmp_path) / "run" / "attempt_0" / "1"
    logs.mkdir(parents=True)
    assert log_tail(tmp_path, 1) == ""
    (logs / "stdout.log").write_text("error: --lr must be positive")
    (logs / "stderr.log").touch()
    assert log_tail(tmp_path, 1) == "error: --lr must be positive"
    (logs / "stderr.log").write_text("Traceback")
    assert log_tail(tmp_path, 1) == "Traceback"


def test_a_script_runs_as_the_main_program_beside_its_own_modules(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("NAME = 'neighbour'\n")
    done = rank(
        tmp_path,
        """
import atexit, multiprocessing, pickle, sys, threading, time
import neighbour

class Own:
    pass

def squared(number):
    return number * number

if __name__ == "__main__":
    atexit.register(print, "at exit")
    print(__file__ == sys.argv[0], sys.argv[1:], neighbour.NAME)
    print(type(pickle.loads(pickle.dumps(Own()))) is Own)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(squared, [3]))
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
""",
        "--lr",
        "a b",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["True ['--lr', 'a b'] neighbour", "True", "[9]", "thread", "at exit"]


def test_what_a_script_raises_is_reported_with_its_last_line_and_printed_from_the_script_on(tmp_path: Path) -> None:
    done = rank(tmp_path, "import no_such_module_anywhere\n")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Traceback (most recent call last):",
        f'  File "{tmp_path}/own.py", line 1, in <module>',
        "    import no_such_module_anywhere",
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ]
    message = "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert read_reports(tmp_path) == {"rank-1": Report(reason=Reason.RANK_FAILED, message=message)}


def test_a_fault_that_a_user_can_mend_keeps_its_exit_code_outside_of_a_trainer_too(tmp_path: Path) -> None:
    done = rank(
        tmp_path,
        "from sftjob.failure import JobFailure, Reason\n"
        "raise JobFailure(Reason.MODEL_UNREADABLE, 'base: no such folder')\n",
    )
    assert (done.returncode, done.stderr) == (66, "base: no such folder\n")
    assert read_reports(tmp_path)["rank-1"].reason is Reason.MODEL_UNREADABLE


def test_a_script_dies_with_its_torchrun(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import time\nopen(__file__ + '.runs', 'w')\ntime.sleep(600)\n")
    parent = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import os, subprocess, sys, time\n"
            "subprocess.Popen([sys.executable, '-m', 'sft_trainer.child', 'script', str(os.getpid()), *sys.argv[1:]])\n"
            "time.sleep(600)\n",
            *(str(tmp_path), str(tmp_path / "own.py")),
        ],
        env=os.environ | {"RANK": "1"},
    )
    until((tmp_path / "own.py.runs").exists)
    (child,) = children(parent.pid)
    parent.kill()
    parent.wait()
    until(lambda: not Path(f"/proc/{child}").exists())


def test_a_script_that_can_t_run_is_refused_with_its_path_before_any_rank_starts(tmp_path: Path) -> None:
    script = tmp_path / "own.py"

    def refused() -> str:
        with pytest.raises(JobFailure) as failure:
            command(script)
        assert failure.value.reason is Reason.INVALID_CONFIGURATION
        return failure.value.message

    where = f"spec.script.uri: {script}"
    assert refused() == f"{where} can't be read (No such file or directory); put the script there, or name another file"
    script.write_text("print('begins')\ndef f(:\n")
    assert refused() == f"{where}, line 2: def f(:: SyntaxError: invalid syntax; correct it"
    script.write_bytes(b"\xff\xfe")
    assert "SyntaxError: (unicode error) 'utf-8' codec can't decode byte 0xff" in refused()
    script.unlink()
    script.mkdir()
    assert "Is a directory" in refused()


def test_arguments_that_are_places_become_paths_and_no_others(tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text("pass")
    arguments = ["--data", "pvc://data/chats.jsonl", "--data=pvc://data/chats.jsonl", "file:///etc/hosts", ""]
    assert command(script, *arguments) == [
        str(script),
        "--data",
        "/claims/data/chats.jsonl",
        "--data=pvc://data/chats.jsonl",
        "file:///etc/hosts",
        "",
    ]


def test_ranks_are_told_where_the_launcher_is_and_where_a_model_goes(tmp_path: Path) -> None:
    assert script_environment(a_plan(tmp_path / "own.py"), tmp_path) == {"SFTJOB_LAUNCH": str(tmp_path)}
    plan = a_plan(tmp_path / "own.py", output=[{"uri": "pvc://results/model"}])
    assert script_environment(plan, tmp_path)["SFTJOB_OUTPUT"] == "/claims/results/model.tmp-a2"


def command(script: Path, *arguments: str) -> list[str]:
    plan = a_plan(script, *arguments)
    assert plan.spec.script is not None
    refuse_unusable_script(plan, plan.spec.script)
    return script_command(plan, plan.spec.script)


def a_plan(script: Path, *arguments: str, **spec: object) -> LaunchPlan:
    """Attempt 2, where claims lie as in a pod."""
    plan = LaunchPlan.model_validate(
        {
            "job": JobReference(namespace="default", name="script", uid="uid-1"),
            "attempt": 2,
            "spec": {
                "script": {"uri": script.as_uri(), "args": arguments},
                "checkpoint": {"storage": "pvc://results/checkpoints"},
            }
            | spec,
            "mounts": [],
        }
    )
    mounts = [Mount(uri=uri, path=uri.replace("pvc://", "/claims/").removeprefix("file://")) for uri in plan.spec.uris]
    return plan.model_copy(update={"mounts": mounts})


def until(condition: object) -> None:
    deadline = time.monotonic() + 300
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_fails_after_a_trainer_came_to_its_end_is_told_with_how_far_it_came(tmp_path: Path) -> None:
    done = rank(
        tmp_path,
        f"""
from pathlib import Path
from sft_trainer.report import Report, write_report
from sftjob.failure import Reason

write_report(Path({str(tmp_path)!r}), "rank-1", Report(reason=Reason.SUCCEEDED, last_step=5, saved_step=5))
raise ConnectionError("the upload broke off")
""",
    )
    assert done.returncode == 1
    report = read_reports(tmp_path)["rank-1"]
    assert (report.reason, report.message) == (Reason.RANK_FAILED, "ConnectionError: the upload broke off")
    assert (report.last_step, report.saved_step) == (5, 5)
