"""The chat templates of our own, by name: what `chat_template` in a job or a script may say.

`chat_template_named` gives the text; `render` uses it in place of the tokenizer's own, the cache keys on it.
"""

from pathlib import Path

from sftjob.failure import JobFailure, Reason

_FOLDER = Path(__file__).parent / "templates"


def known_templates() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.jinja"))


def chat_template_named(name: str) -> str:
    """Raises JobFailure for a name that is not ours."""
    if name not in known_templates():
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"chatTemplate: {name!r} is not known; use one of {', '.join(known_templates())}, "
            "or leave it out to keep the tokenizer's own",
        )
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
