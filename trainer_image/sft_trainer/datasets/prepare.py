"""From a `DataloaderConfig` to packs that can be trained: what every rank calls first.

In: the configuration, a tokenizer's folder, a folder for the cache. Out: `PreparedData`, the same on every rank. Called
by the launcher's prepare stage and by the Trainer, before any process group exists: tokenising can take longer than a
collective's timeout.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sft_trainer.datasets.bad_rows import NO_BAD_ROWS, BadRows
from sft_trainer.datasets.cache import TokenCache
from sft_trainer.datasets.config import DataloaderConfig, DatasetEntry
from sft_trainer.datasets.evaluation import hold_out, refuse_trained_files, refuse_trained_rows
from sft_trainer.datasets.fingerprint import tokenizer_fingerprint
from sft_trainer.datasets.open_tokens import bad_rows_of_cache, open_tokens
from sft_trainer.datasets.order import permutation
from sft_trainer.datasets.pack import Packs, cut_to, pack_samples
from sft_trainer.datasets.pack_cache import StoredPacks, open_or_pack
from sft_trainer.datasets.receipt import PackCounts, count_samples, receipt_of, with_evaluated, with_held_out
from sftjob.base import digest
from sftjob.failure import JobFailure, Reason
from sftjob.receipt import DataReceipt


@dataclass(frozen=True)
class PreparedData:
    caches: list[TokenCache]
    first_ids: list[int]
    """Of each cache, the id of its first sample. Ids count through all datasets."""
    stored: StoredPacks
    """Its packs' members are sample ids."""
    digest: str
    receipt: DataReceipt
    evaluation: "PreparedData | None" = None
    """What is evaluated and never trained on, packed in the same way."""

    @property
    def packs(self) -> Packs:
        return self.stored.packs

    @property
    def longest(self) -> int:
        """Tokens of the longest document that is trained on or evaluated."""
        sets = [self, *([self.evaluation] if self.evaluation else [])]
        return max(int(one.packs.lengths.max()) for one in sets)

    def sample(self, sample_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [T] uint32 and which are trained [T] bool."""
        return sample_of(self.caches, self.first_ids, sample_id)


def sample_of(caches: list[TokenCache], first_ids: list[int], sample_id: int) -> tuple[np.ndarray, np.ndarray]:
    dataset = bisect_right(first_ids, sample_id) - 1
    cache, row = caches[dataset], sample_id - first_ids[dataset]
    span = slice(cache.offsets[row], cache.offsets[row + 1])
    return cache.tokens[span], cache.trained[span]


def prepare_data(
    config: DataloaderConfig,
    *,
    tokenizer_path: str,
    cache_dir: Path,
    seed: int,
    bad_rows_before: BadRows = NO_BAD_ROWS,
    is_evaluation: bool = False,
    on_detail: Callable[[str], None] = lambda _: None,
) -> PreparedData:
    """`bad_rows_before` are those of datasets that were prepared before, for one job has one budget; `is_evaluation`
    where that is what the samples are for, which a refusal then says.

    Raises JobFailure, for bad rows beyond the budget with file, line and field.
    """
    evaluated = (config.evaluation and config.evaluation.dataset_config_list) or []
    refuse_trained_files(evaluated, trained=config.dataset_config_list)
    tokenizer = tokenizer_fingerprint(tokenizer_path)
    caches, bad_rows = [], NO_BAD_ROWS
    for entry in config.dataset_config_list:
        cache = open_tokens(
            config,
            entry,
            tokenizer,
            before=bad_rows_before + bad_rows,
            tokenizer_path=tokenizer_path,
            cache_dir=cache_dir,
            on_detail=on_detail,
        )
        bad_rows += bad_rows_of_cache(entry, cache)
        caches.append(cache)
    first_ids = [sum(cache.meta.samples for cache in caches[:index]) for index in range(len(caches))]
    data_digest = digest(
        {
            "caches": [cache.meta.key.digest() for cache in caches],
            "sampleRatios": [entry.dataset.sample_ratio for entry in config.dataset_config_list],
            "packing": [config.pack_level, config.pack_max_length],
            "seed": seed,
        }
    )

    def all_ids() -> np.ndarray:
        drawn = _all_drawn(config, caches, first_ids, seed=seed)
        if not len(drawn):
            raise _nothing_left(config, caches, is_evaluation=is_evaluation)
        return drawn

    def prepared(key: str, ids: Callable[[], np.ndarray]) -> PreparedData:
        """What `ids` are is told by `key`: they are looked at only where they aren't packed yet."""
        stored = open_or_pack(
            cache_dir,
            key,
            pack=lambda: _packed(config, caches, first_ids, ids(), seed=seed),
            on_wait=lambda: on_detail("another process packs"),
        )
        receipt = receipt_of(stored.counts, entries=config.dataset_config_list, caches=caches, bad_rows=bad_rows)
        return PreparedData(caches=caches, first_ids=first_ids, stored=stored, digest=key, receipt=receipt)

    if config.evaluation is None:
        return prepared(data_digest, all_ids)
    fraction = config.evaluation.fraction
    if fraction is not None:
        whole = {"data": data_digest, "fraction": fraction}
        trained = prepared(
            digest(whole | {"part": "trained"}), lambda: hold_out(all_ids(), fraction=fraction, seed=seed)[0]
        )
        held = prepared(digest(whole | {"part": "held"}), lambda: hold_out(all_ids(), fraction=fraction, seed=seed)[1])
    else:
        trained = prepared(data_digest, all_ids)
        own = config.model_copy(update={"dataset_config_list": evaluated, "evaluation": None})
        held = prepare_data(
            own,
            tokenizer_path=tokenizer_path,
            cache_dir=cache_dir,
            seed=seed,
            bad_rows_before=bad_rows,
            is_evaluation=True,
            on_detail=on_detail,
        )
        refuse_trained_rows(evaluated, held.caches, trained=config.dataset_config_list, caches=caches)
    join = with_evaluated if fraction is None else with_held_out
    return replace(
        trained,
        receipt=join(trained.receipt, held.receipt),
        evaluation=held,
        digest=digest({"training": trained.digest, "evaluation": held.digest}),
    )


def _all_drawn(config: DataloaderConfig, caches: list[TokenCache], first_ids: list[int], *, seed: int) -> np.ndarray:
    """Ids of the samples of all datasets, by their ratios."""
    return np.concatenate(
        [
            first + _drawn(cache.meta.samples, entry.dataset.sample_ratio, seed=(seed, 1, index))
            for index, (cache, first, entry) in enumerate(
                zip(caches, first_ids, config.dataset_config_list, strict=True)
            )
        ]
    )


def _packed(
    config: DataloaderConfig, caches: list[TokenCache], first_ids: list[int], drawn: np.ndarray, *, seed: int
) -> StoredPacks:
    """The samples with these ids."""
    lengths = np.concatenate([np.diff(cache.offsets) for cache in caches])[drawn]
    trained = np.concatenate([cache.trained_counts for cache in caches])[drawn].astype(np.int64)
    # With `split` a sample may be longer than a pack: what is packed are its parts.
    most = np.array([_longest_part(config, entry) for entry in config.dataset_config_list])
    whose, begins, part_lengths = cut_to(most[np.searchsorted(first_ids, drawn, side="right") - 1], lengths)
    packs = pack_samples(part_lengths, max_length=config.pack_max_length, level=config.pack_level, seed=seed)
    draws, starts = whose[packs.members], packs.offsets[:-1]
    packs = replace(packs, members=drawn[draws], begins=begins[packs.members] + packs.begins)
    piece_trained, is_piece = trained[draws], packs.lengths < lengths[draws]
    for piece in np.flatnonzero(is_piece).tolist():
        _, flags = sample_of(caches, first_ids, int(packs.members[piece]))
        # What the piece's last token predicts is counted here, though it stands in another pack.
        begin, end = int(packs.begins[piece]), int(packs.begins[piece] + packs.lengths[piece])
        piece_trained[piece] = np.count_nonzero(flags[begin + 1 : end + 1])
    return StoredPacks(
        packs=packs,
        tokens=np.add.reduceat(packs.lengths, starts),
        trained=np.add.reduceat(piece_trained, starts),
        attention=np.add.reduceat(packs.lengths**2, starts),
        counts=PackCounts(
            packs=len(packs),
            cut_by_packs=int(np.count_nonzero(is_piece & (packs.begins == 0))),
            datasets=count_samples(
                drawn,
                first_ids=first_ids,
                lengths=lengths,
                trained=trained,
                is_cut=np.concatenate([cache.is_cut for cache in caches])[drawn],
            ),
        ),
    )


def _longest_part(config: DataloaderConfig, entry: DatasetEntry) -> int:
    most = config.max_length(entry)
    cuts_anyway = config.pack_level == "hard" and most == config.pack_max_length
    return np.iinfo(np.int64).max if cuts_anyway else most


def _drawn(samples: int, ratio: float, *, seed: tuple[int, ...]) -> np.ndarray:
    """Indices of the samples: all as often as the ratio is whole, and of the rest a seeded choice, in file order."""
    whole, rest = divmod(ratio, 1.0)
    part = np.sort(permutation(samples, seed=seed)[: round(rest * samples)])
    return np.concatenate([np.tile(np.arange(samples), int(whole)), part])


def _nothing_left(config: DataloaderConfig, caches: list[TokenCache], *, is_evaluation: bool) -> JobFailure:
    counts = [
        f"{entry.dataset.anno_path}: of {cache.meta.rows} rows {cache.meta.bad_rows} can't be used, "
        f"{cache.meta.dropped} are dropped, longer than {cache.meta.key.max_length} tokens or without a trained token "
        f"within them, and sample_ratio is {entry.dataset.sample_ratio}"
        for entry, cache in zip(config.dataset_config_list, caches, strict=True)
    ]
    remedy = "train, raise pack_max_length or sample_ratio"
    if is_evaluation:
        remedy = "evaluate, give evaluation other datasets, or raise pack_max_length or their sample_ratio"
    return JobFailure(Reason.INVALID_DATA, "\n".join(counts) + f"; nothing is left to {remedy}")
