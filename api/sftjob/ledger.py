"""What each rank has fed to the model: the lines of `attempts/<N>/ledger-<rank>.jsonl`, a head and then one a step.

Written by the ranks themselves from the batches that they trained on, not from the plan of the order; synced before a
checkpoint is published, so that every step up to a checkpoint is told. `sft ledger` reads them.
"""

from sftjob.base import Record


class EpochContent(Record):
    """What an epoch consists of."""

    samples: list[tuple[int, int, int]]
    """(first, last, times): samples with neighbouring ids that are drawn that often each."""
    cut: list[tuple[int, int]] = []
    """(sample, token): where packs of level `hard` have cut a sample, its rest begins with this token."""


class LedgerHead(Record):
    world_size: int
    resumed_from: int
    """Steps after it that an earlier attempt has trained are lost; 0 from the start."""
    total_epoch: int | None = None
    """None where the run's length is in steps: its last epoch may stop anywhere."""
    total_steps: int
    """Of the whole run, unless evaluation ends it early."""
    content: EpochContent | None = None
    """Rank 0 alone tells it."""


class FedPack(Record):
    epoch: int
    """From 1."""
    samples: list[int]
    begins: list[int] = []
    """Of each sample, its first token here; empty where all samples are whole."""


class LedgerLine(Record):
    step: int
    packs: list[FedPack]
    """Of one rank. A pack of pads alone is not named."""
