"""What a job reads on this machine and is not there: told before anything starts, all of it at once."""

import re
from pathlib import Path

from sft_cli.refusal import Refusal
from sft_operator.local.claims import Claims
from sftjob.failure import ExitCode
from sftjob.names import HUB
from sftjob.spec import SFTJobSpec

_CODES = {"spec.script.": ExitCode.CONFIGURATION, "spec.model.": ExitCode.MODEL, "spec.data.": ExitCode.DATA}


def missing_here(spec: SFTJobSpec, claims: Claims) -> dict[str, str]:
    """A sentence with value and remedy, by path in the spec."""
    found = {}
    for path, uri in spec.places.items():
        is_read = path.startswith(tuple(_CODES)) and ".args[" not in path
        if is_read and uri.startswith(("file://", "pvc://")):
            place = Path(claims.path_of(uri))
            if not _may_be_there(place):
                found[path] = _sentence(path, place)
    return found


def refuse_what_is_not_here(spec: SFTJobSpec, claims: Claims) -> None:
    """Raises Refusal, with the code of the first section that lacks something."""
    missing = missing_here(spec, claims)
    for section, code in _CODES.items():
        if any(path.startswith(section) for path in missing):
            raise Refusal("\n".join(f"{path}: {sentence}" for path, sentence in missing.items()), code=code)


def _may_be_there(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:
        # Whoever reads it tells why it can't be.
        return True


def _sentence(path: str, place: Path) -> str:
    if path.startswith("spec.model."):
        here = Path.cwd()
        name = place.relative_to(here).as_posix() if place.is_relative_to(here) else ""
        hub = f", or for the hub's write {HUB}{name}" if name.count("/") == 1 else ""
        return f"{place}: no such folder; name a Hugging Face model folder{hub}"
    # A shell that finds no file for a pattern leaves it as it is.
    is_list = path.startswith("spec.data.") and re.search(r"[*?,]", place.name)
    return f"{place}: there is no such file; correct the path{'; give --data once for each file' if is_list else ''}"
