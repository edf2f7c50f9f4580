"""What a tokenizer's result depends on, as digests: part of the cache's key.

In: the tokenizer's folder. Called by `prepare`, so that a run whose tokens are cached need not load the tokenizer.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path

from sftjob.failure import JobFailure, Reason

_PATTERNS = (
    "tokenizer*",
    "*.tiktoken",
    "*.model",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.*",
    "additional_chat_templates/*",
    "config.json",  # its model type chooses the tokenizer's class
)
_LIBRARIES = ("tokenizers", "transformers", "jinja2")


def tokenizer_fingerprint(folder: str) -> dict[str, str]:
    """Raises JobFailure for a folder that does not exist."""
    root = Path(folder)
    if not root.is_dir():
        raise JobFailure(Reason.MODEL_UNREADABLE, f"{folder}: there is no such folder; correct the tokenizer's path")
    files = sorted({path for pattern in _PATTERNS for path in root.glob(pattern) if path.is_file()})
    digests = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return digests | {library: version(library) for library in _LIBRARIES}
