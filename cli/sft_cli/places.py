"""What a job can't read or write on this machine: told before anything starts, all of it at once."""

import os
import re
from pathlib import Path

from sft_cli.refusal import Refusal
from sft_operator.local.claims import Claims
from sftjob.failure import ExitCode
from sftjob.names import HUB
from sftjob.spec import SFTJobSpec

_SCRIPT, _MODEL, _DATA, _STORAGE, _OUTPUT = (
    "spec.script.",
    "spec.model.",
    "spec.data.",
    "spec.checkpoint.",
    "spec.output[",
)
_CODES = {
    _SCRIPT: ExitCode.CONFIGURATION,
    _MODEL: ExitCode.MODEL,
    _DATA: ExitCode.DATA,
    _STORAGE: ExitCode.STORAGE,
    _OUTPUT: ExitCode.STORAGE,
}


def unusable_here(spec: SFTJobSpec, claims: Claims) -> dict[str, str]:
    """A sentence with value and remedy, by path in the spec."""
    found: dict[str, str] = {}
    for path, uri in spec.places.items():
        # Of an argument, the script alone knows whether it reads or writes there.
        if uri.startswith(("file://", "pvc://")) and ".args[" not in path:
            place = Path(claims.path_of(uri))
            sentence = _unwritable(path, place) if path.startswith((_STORAGE, _OUTPUT)) else _missing(path, place)
            found |= {path: sentence} if sentence else {}
    return found


def refuse_unusable(spec: SFTJobSpec, claims: Claims) -> None:
    """Raises Refusal, with the code of the first section that has something of it."""
    unusable = unusable_here(spec, claims)
    for section, code in _CODES.items():
        if any(path.startswith(section) for path in unusable):
            raise Refusal("\n".join(f"{path}: {sentence}" for path, sentence in unusable.items()), code=code)


def _unwritable(path: str, place: Path) -> str | None:
    """By the first of the folders that is there: the rest would be made in that one."""
    # A model takes its place by a rename in the folder above.
    written = place.parent if path.startswith(_OUTPUT) else place
    try:
        there = next(folder for folder in (written, *written.parents) if folder.exists())
    except OSError:
        # The launcher tells why it can't be written.
        return None
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    why = f"{there} can't be written by this user" if there.is_dir() else f"{there} is a file"
    return f"{place}: {why}; name another folder"


def _missing(path: str, place: Path) -> str | None:
    try:
        if place.exists():
            return None
    except OSError:
        # Whoever reads it tells why it can't be.
        return None
    if path.startswith(_MODEL):
        here = Path.cwd()
        name = place.relative_to(here).as_posix() if place.is_relative_to(here) else ""
        hub = f", or for the hub's write {HUB}{name}" if name.count("/") == 1 else ""
        return f"{place}: no such folder; name a Hugging Face model folder{hub}"
    # A shell that finds no file for a pattern leaves it as it is.
    is_list = path.startswith(_DATA) and re.search(r"[*?,]", place.name)
    return f"{place}: there is no such file; correct the path{'; give --data once for each file' if is_list else ''}"
