"""Breaks the lifecycle's decisions one at a time, each in a copy of its own, and shows which test turns red.

`python -m tests.mutants` prints a table, and ends with 1 where a broken decision is noticed by no test.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIFECYCLE = ROOT / "operator" / "sft_operator" / "lifecycle"
TESTS = (
    "test_decide.py",
    "test_deadlines.py",
    "test_queued.py",
    "test_retry_by_hand.py",
    "test_figures.py",
    "test_preflight_decisions.py",
    "test_upgrade.py",
)


@dataclass(frozen=True)
class Mutant:
    decision: str
    """What holds no more."""
    file: str
    source: str
    """Stands once in the file."""
    broken: str


MUTANTS = (
    Mutant("a new attempt has a new number", "decide.py", "kind = attempts.current + 1,", "kind = attempts.current,"),
    Mutant(
        "nothing is created while another attempt lives",
        "decide.py",
        "other = next((attempt for attempt in observation.live() if",
        "other = next((attempt for attempt in () if",
    ),
    Mutant(
        "what has ended is in nobody's way",
        "decide.py",
        "decision if decision.action or leftover is None",
        "decision if leftover is None",
    ),
    Mutant("what is deleted already is not asked for again", "decide.py", " and not attempt.is_deleting and ", " and "),
    Mutant(
        "an attempt has ended only when every node has",
        "observation.py",
        "if not any(node.is_live for node in self.nodes)",
        "if not all(node.is_live for node in self.nodes)",
    ),
    Mutant(
        "the others end when one node has failed",
        "decide.py",
        "if attempt.is_deleting or attempt.has_failed or status.attempts.ending is not None:",
        "if attempt.is_deleting:",
    ),
    Mutant(
        "why an attempt ends is known before it is deleted",
        "decide.py",
        "status = _note_ending(status, attempt, now)",
        "pass",
    ),
    Mutant(
        "a lost attempt is not created again",
        "decide.py",
        "was_seen = status.phase is not Phase.STARTING or",
        "was_seen =",
    ),
    Mutant("a success is proven", "cause.py", " and (outcome.final_digest or outcome.script_completed)", ""),
    Mutant(
        "a disruption uses no retry",
        "budgets.py",
        "attempts.failures + (is_counted and not is_disruption)",
        "attempts.failures + is_counted",
    ),
    Mutant("three attempts without progress end a job", "budgets.py", ">= NO_PROGRESS_LIMIT", "> NO_PROGRESS_LIMIT"),
    Mutant("what fails again is not tried again", "budgets.py", "if last.reason in NEVER_RETRIED:", "if False:"),
    Mutant(
        "a suspension costs nothing",
        "decide.py",
        "is_requested = status.phase is Phase.SUSPENDING",
        "is_requested = False",
    ),
    Mutant(
        "the next attempt waits for its time",
        "decide.py",
        "attempts.next_at is not None and attempts.next_at > now",
        "False",
    ),
    Mutant(
        "what is held back from its birth waits",
        "decide.py",
        "was_let_go = status.attempts.running_since is not None",
        "was_let_go = True",
    ),
    Mutant(
        "what its queue takes back has ended",
        "decide.py",
        "was_let_go = status.attempts.running_since is not None",
        "was_let_go = False",
    ),
    Mutant("a deadline ends an attempt", "decide.py", "deadline.seconds_left <= 0", "deadline.seconds_left < -3600"),
    Mutant(
        "earlier attempts' running time counts",
        "deadlines.py",
        "limit - attempts.running_seconds - (now",
        "limit - (now",
    ),
    Mutant("nothing counts as a hang before all nodes run", "deadlines.py", " and not waiting:", ":"),
    Mutant("a hang is told whatever its nodes say", "cause.py", "elif reason in _BY_OPERATOR:", "elif False:"),
    Mutant("a retry is acted on once", "decide.py", "wanted == status.retry_handled", "False"),
    Mutant(
        "a job with accelerators begins with a pre-flight",
        "preflight.py",
        '"auto": bool(spec.compute.resources.devices)',
        '"auto": False',
    ),
    Mutant("a pre-flight is done once", "preflight.py", "attempts.prepared is not None or ", ""),
    Mutant("what has saved needs no pre-flight", "preflight.py", " or attempts.saved_step is not None", ""),
    Mutant("a pre-flight has one launcher", "preflight.py", "return 1 if", "return job.spec.compute.nodes if"),
    Mutant(
        "an announced pre-flight stays one",
        "plan.py",
        "job.status.attempts.kind is AttemptKind.PREFLIGHT",
        'job.spec.run_policy.preflight != "never"',
    ),
    Mutant("to have prepared costs nothing", "budgets.py", "not is_success and not has_prepared", "not is_success"),
    Mutant("after a pre-flight nothing is waited for", "decide.py", " and record.reason is not Reason.PREPARED", ""),
    Mutant("a pre-flight uses no GPUs", "usage.py", "if record.kind is AttemptKind.PREFLIGHT:", "if False:"),
    Mutant("a retry by hand looks again", "budgets.py", '"prepared": None,', ""),
    Mutant("what goes by itself is not asked again", "decide.py", "None if attempt.goes_by_itself else Del", "Del"),
    Mutant("what has saved goes on in its image", "image.py", "None if status.saved_step is None else", "None and"),
    Mutant("what has saved nothing takes the present image", "image.py", "None if status.saved_step is None else ", ""),
    Mutant("a retry by hand takes the present image", "budgets.py", '"image": None,', ""),
    Mutant("a finished job stays for its time", "decide.py", "if left > 0 else", "if False else"),
)


def first_failure(mutant: Mutant | None) -> str | None:
    """The first test that fails on a copy with this mutant, or on one as it is; None where none does.

    Raises ValueError where the source has changed, RuntimeError where the copy doesn't even run.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "sft_operator"
        shutil.copytree(LIFECYCLE.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            file = copy / "lifecycle" / mutant.file
            text = file.read_text()
            if text.count(mutant.source) != 1:
                raise ValueError(f"{mutant.file}: {mutant.source!r} stands {text.count(mutant.source)} times in it")
            file.write_text(text.replace(mutant.source, mutant.broken))
        return _run_tests(Path(folder))


def _run_tests(folder: Path) -> str | None:
    tests = [str(ROOT / "tests" / "sft_operator" / name) for name in TESTS]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    failed = re.search(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"the tests did not run:\n{done.stdout}{done.stderr}")
    return failed[1]


def main() -> int:
    if failed := first_failure(None):
        print(f"{failed} fails without any mutant", file=sys.stderr)
        return 1
    print("| Decision | Where | Red without it |\n|---|---|---|", flush=True)
    unnoticed = 0
    for mutant in MUTANTS:
        failed = first_failure(mutant)
        unnoticed += failed is None
        print(f"| {mutant.decision} | {mutant.file} | {failed or '**none**'} |", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
