"""Whether all ranks have prepared the same data: each reads the files that its own node has under the path.

Called by the loop on every rank, before the model is loaded. Ranks with other packs would wait for each other for ever,
or train on a mixture that no plan describes.
"""

from typing import NamedTuple

from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.run import RunOptions
from sft_trainer.train.world import World
from sftjob.base import digest
from sftjob.failure import JobFailure, Reason


class DataAccount(NamedTuple):
    """What decides a rank's batches."""

    rows: list[tuple[str, str]]
    """Of each dataset, those of the evaluation last: its path, the digest of its rows."""
    tokenizer: tuple[str, str]
    """Its folder, the digest of its files and of the libraries that read them."""
    digest: str
    """Of everything."""


def refuse_different_data(data: PreparedData, options: RunOptions, world: World) -> None:
    """Raises JobFailure(INVALID_DATA), on every rank with the same words."""
    told = world.from_each(lambda: account_of(data, options))
    different = [rank for rank, account in enumerate(told) if account.digest != told[0].digest]
    if different:
        raise JobFailure(Reason.INVALID_DATA, difference(told[0], told[different[0]], ranks=different))


def account_of(data: PreparedData, options: RunOptions) -> DataAccount:
    config, evaluation = options.dataloader_cfg, options.evaluation
    read = [*zip(config.dataset_config_list, data.caches, strict=True)]
    if evaluation and evaluation.dataset_config_list and data.evaluation:
        read += zip(evaluation.dataset_config_list, data.evaluation.caches, strict=True)
    return DataAccount(
        rows=[(str(entry.dataset.anno_path), cache.meta.key.content) for entry, cache in read],
        tokenizer=(options.tokenizer_path, digest(data.caches[0].meta.key.tokenizer)),
        digest=data.digest,
    )


def difference(first: DataAccount, other: DataAccount, *, ranks: list[int]) -> str:
    """Of rank 0's account and that of the first of the `ranks` with another one."""
    who = f"rank {ranks[0]}" + (f" and {len(ranks) - 1} more" if ranks[1:] else "")
    for (path, rows), (other_path, other_rows) in zip(first.rows, other.rows, strict=False):
        if rows != other_rows:
            where = path if path == other_path else f"{path} and {other_path}"
            return f"{where}: {who} read other rows than rank 0; give all nodes the same file"
    if first.tokenizer[1] != other.tokenizer[1]:
        return f"{other.tokenizer[0]}: {who} read another tokenizer here than rank 0; give all nodes the same"
    return (
        f"{who} got other datasets, packing, sample_ratio, evaluation or seed than rank 0; give all ranks the "
        "same arguments"
    )
