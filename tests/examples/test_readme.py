"""What a newcomer copies out of the README and examples/ is valid."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sftjob.job import parse_manifest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
JOBS = [
    text for text in re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL) if "kind: SFTJob" in text
]
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.yaml")) if "kind: SFTJob" in path.read_text()]
TRAINED = re.findall(r"^sft train [^#\n]*", README, re.MULTILINE)


@pytest.mark.parametrize("text", [*JOBS, *(path.read_text() for path in EXAMPLES)])
def test_jobs_are_valid(text: str) -> None:
    parse_manifest(yaml.safe_load(text))


@pytest.mark.parametrize("command", TRAINED)
def test_commands_make_a_job(command: str, tmp_path: Path) -> None:
    sft = [sys.executable, "-c", "from sft_cli.main import app; app()"]
    # Whether or not this machine reaches a hub.
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    said = subprocess.run(
        [*sft, *shlex.split(command)[1:], "--dry-run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (said.returncode, said.stderr) == (0, "")


def test_the_readme_has_both() -> None:
    assert (len(JOBS), len(TRAINED)) == (1, 3)


def test_the_evaluation_that_the_readme_advises_goes_with_its_job() -> None:
    (job,) = JOBS
    (advised,) = re.findall(r"data\.evaluation: (\{.*?\})`", README)
    manifest = yaml.safe_load(job)
    manifest["spec"]["data"]["evaluation"] = yaml.safe_load(advised)
    parse_manifest(manifest)
