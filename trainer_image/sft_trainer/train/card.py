"""The `README.md` of an exported model: what it was made of, in the form that the Hub shows. Called on rank 0.

Nothing in it depends on when, where or in how many attempts the model was trained.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from sft_trainer.datasets.batch import BatchStream
from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.run import RunOptions
from sftjob import __version__
from sftjob.manifest import CheckpointManifest

FILE = "README.md"


def write_card(
    folder: Path,
    *,
    options: RunOptions,
    data: PreparedData,
    stream: BatchStream,
    checkpoint: CheckpointManifest,
    total_steps: int,
    library: str,
) -> None:
    """`checkpoint` is the exported one; `library` the one that loads the folder. A card that is there already stays."""
    if (folder / FILE).exists():
        return
    # A cache's digest covers the file, the tokenizer, the template and the length.
    names = [entry.dataset.name for entry in options.dataloader_cfg.dataset_config_list]
    rows = [
        *((f"Data `{name}`", f"`{cache.meta.key.digest()}`") for name, cache in zip(names, data.caches, strict=True)),
        ("Steps", steps_in_words(checkpoint.step, total_steps=total_steps)),
        ("Tokens", f"{sum(stream.tokens(step) for step in range(1, checkpoint.step + 1)):,}"),
    ]
    if checkpoint.loss is not None:
        rows.append(("Loss of the last step", f"{checkpoint.loss:.4f}"))
    if checkpoint.evaluation is not None:
        rows.append(("Evaluation loss", f"{checkpoint.evaluation.loss:.4f}"))
    if options.base_revision is not None:
        rows.append(("Revision of the base model", f"`{options.base_revision}`"))
    rows.append(("Configuration", f"`{options.digest()}`"))
    base = options.base_repository or (Path(options.load_from).name if options.load_from else None)
    (folder / FILE).write_text(card_text(base=base, library=library, rows=rows), encoding="utf-8")


def steps_in_words(step: int, *, total_steps: int) -> str:
    return f"{step:,}" + (f" of {total_steps:,}: the lowest evaluation loss" if step != total_steps else "")


def card_text(*, base: str | None, library: str, rows: Sequence[tuple[str, str]]) -> str:
    """Front matter as the Hub reads it, then a table. `base` is the model that was fine-tuned."""
    matter = {"library_name": library, "pipeline_tag": "text-generation", "tags": ["sft", "sftjob"]}
    if base is not None:
        matter["base_model"] = base
    # A JSON value is a YAML value.
    front = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in matter.items())
    started = f"{base}, fine-tuned" if base else "A model trained from scratch"
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return (
        f"---\n{front}---\n\n# {started}\n\nBy sftjob {__version__}.\n\n| | |\n|---|---|\n{table}\n"
        "No licence is stated here: those of the base model and of the data bind you. Name yours as `license` above.\n"
    )
