"""Whether a job's trackers can work at all: asked before anything is trained, on every rank or by the prepare stage."""

import importlib.util
import netrc
import os
from collections.abc import Sequence
from urllib.parse import urlsplit

from sftjob.failure import JobFailure, Reason
from sftjob.options import Tracker

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
_WITHOUT_A_SERVER = ("offline", "disabled")


def refuse_unusable_trackers(report_to: Sequence[Tracker], *, field: str) -> None:
    """Raises JobFailure(INVALID_CONFIGURATION) with each that is not installed, or has no key. `field` names them."""
    problems = [
        f"{field}: {tracker} needs the Python package {package}, which is not installed here; use an image that has it "
        f"(pip install {package}), or remove {tracker}"
        for tracker in dict.fromkeys(report_to)
        if importlib.util.find_spec(package := _PACKAGES[tracker]) is None
    ]
    if "wandb" in report_to and os.environ.get("WANDB_MODE") not in _WITHOUT_A_SERVER and not _has_wandb_key():
        problems.append(
            f"{field}: wandb has no key; set WANDB_API_KEY, in a job from a Secret by spec.compute.env, or log in "
            "(wandb login), or set WANDB_MODE to offline"
        )
    if problems:
        raise JobFailure(Reason.INVALID_CONFIGURATION, "\n".join(problems))


def _has_wandb_key() -> bool:
    """In the environment, or where `wandb login` puts it."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        logged_in = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        logged_in = False
    return logged_in or bool(os.environ.get("WANDB_API_KEY"))
