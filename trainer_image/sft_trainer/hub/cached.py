"""What a hub has, for a command that runs no job: by the job's own download, into the user's cache folder.

    $XDG_CACHE_HOME/sftjob/hub/<all that the name stands for, hashed>/   see `downloads.sources`

Called by `inspect_data`, and by `datasets.hub` on every rank. A commit is downloaded once, by one process at a time; a
branch is looked up each time.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars

from sft_trainer.datasets.made_once import locked
from sft_trainer.downloads.sources import hub_source
from sft_trainer.downloads.transfer import is_whole
from sft_trainer.hub.download import commit_of, download
from sftjob.failure import JobFailure, Reason
from sftjob.sources import DatasetSpec, UriSource


def cached(field: str, spec: UriSource | DatasetSpec, *, on_detail: Callable[[str], None]) -> str:
    """The path of the model's folder, without its weights, or of the dataset. `field` is for messages.

    Raises JobFailure.
    """
    disable_progress_bars()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftjob" / "hub"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobFailure(
            Reason.STORAGE_UNAVAILABLE, f"{cache}: {error.strerror}; name another folder with XDG_CACHE_HOME"
        ) from None
    source = hub_source(field, spec, folder=cache)
    commit = commit_of(source, on_detail=on_detail)
    named = "\0".join([source.kind, source.repository, commit, source.path, source.config or "", source.split or ""])
    source = replace(source, folder=cache / hashlib.sha256(named.encode()).hexdigest()[:32])
    if not is_whole(source):
        lock = source.folder.with_name(f"{source.folder.name}.lock")
        with locked(lock, on_wait=lambda: on_detail(f"{source.uri}: another process downloads it")):
            download(source, commit, on_detail=on_detail)
    return source.local
