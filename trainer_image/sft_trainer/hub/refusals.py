"""What a hub's refusal means for the job: whether it is worth asking again, and the sentence for the user.

In: what `huggingface_hub` or its HTTP client raised. Out: a JobFailure with field, value and remedy. Pure.
"""

import json

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sft_trainer.downloads.sources import HubSource
from sftjob.failure import JobFailure, Reason

REFUSALS = (httpx2.HTTPError, httpx2.InvalidURL, HFValidationError, OfflineModeIsEnabled, json.JSONDecodeError)
"""What the library raises where the hub, or the way to it, is at fault."""

_PASSING_STATUS = (408, 429)
_TOKEN = "from a Secret through spec.compute.env in a cluster, from the environment with `sft run`"


def is_passing(error: Exception) -> bool:
    """Asking again may help: the network, or a hub that is busy or down."""
    if isinstance(error, HfHubHTTPError):
        return _status(error) in _PASSING_STATUS or _status(error) >= 500
    return isinstance(error, httpx2.TransportError)


def refusal(source: HubSource, error: Exception) -> JobFailure:
    reason = Reason.INVALID_DATA if source.kind == "dataset" else Reason.MODEL_UNREADABLE
    what = f"{source.field}.uri: {source.uri}"
    match error:
        case OfflineModeIsEnabled():
            message = f"{what} is not downloaded yet, and HF_HUB_OFFLINE forbids it; unset it"
        case HFValidationError():
            message = f"{what} is no repository's name ({_line(error)}); correct it"
        case RevisionNotFoundError():
            message = (
                f"{source.field}.revision: {source.revision!r} is no branch, tag or commit of {source.repository}; "
                "correct it"
            )
        case GatedRepoError():
            message = (
                f"{what} is gated, and {_token_at_fault()}; accept its terms on its page and set HF_TOKEN, {_TOKEN}"
            )
        case RepositoryNotFoundError():
            message = (
                f"{what} is not found at {constants.ENDPOINT} ({_status(error)}), or it is private and "
                f"{_token_at_fault()}; correct the name, or set HF_TOKEN, {_TOKEN}"
            )
        case HfHubHTTPError() if _status(error) in (401, 403):
            message = f"{what} is refused ({_status(error)}): {_token_at_fault()}; set HF_TOKEN, {_TOKEN}"
        case HfHubHTTPError() if not is_passing(error):
            message = f"{what}: {constants.ENDPOINT} answers {_status(error)}, {_line(error)}; correct the name"
        case _:
            reason = Reason.HUB_UNREACHABLE
            message = (
                f"{what}: no useful answer from {constants.ENDPOINT} ({type(error).__name__}: {_line(error)}); see "
                "that it can be reached from here, or name another one with HF_ENDPOINT"
            )
    return JobFailure(reason, message)


def _token_at_fault() -> str:
    return "HF_TOKEN does not open it" if get_token() else "there is no token"


def _status(error: HfHubHTTPError) -> int:
    return error.response.status_code


def _line(error: Exception) -> str:
    said = error.server_message if isinstance(error, HfHubHTTPError) else str(error)
    return " ".join((said or "").split())[:200] or "without a word"
