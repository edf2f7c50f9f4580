"""A hub's dataset for the Python API: `DatasetConfig(anno_path=hub_dataset("hf://datasets/openai/gsm8k", ...))`.

Called by a user's script, on every rank: the first of a machine downloads, the others wait. A job needs it not: its
`spec.data.datasets` say the same.
"""

import logging
from pathlib import Path

from sft_trainer.hub.cached import cached
from sftjob.failure import JobFailure, Reason
from sftjob.names import HUB
from sftjob.sources import DatasetSpec

log = logging.getLogger(__name__)


def hub_dataset(uri: str, *, config: str | None = None, split: str | None = None, revision: str | None = None) -> Path:
    """Where its files lie, in the user's cache folder. `HF_TOKEN` opens what is private.

    Args:
        uri: hf://datasets/<owner>/<name>, of which one split is taken, or a file or folder in it.
        config: absent: the dataset's default.
        split: absent: train.
        revision: branch, tag or commit; absent: main. A branch that moves while ranks start is told by the Trainer,
            which refuses data that differs between them.

    Raises:
        pydantic.ValidationError, JobFailure: an argument, with its value and the remedy.
    """
    if not uri.startswith(HUB):
        raise JobFailure(
            Reason.INVALID_CONFIGURATION, f"hub_dataset: {uri!r} is not of a hub; give its path to anno_path itself"
        )
    spec = DatasetSpec(name="hub", uri=uri, config=config, split=split, revision=revision)
    return Path(cached("hub_dataset", spec, on_detail=log.info))
