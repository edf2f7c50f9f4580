"""From a `DataloaderConfig` to packs that can be trained: what every rank calls first.

In: the configuration, a tokenizer's folder, a folder for the cache. Out: `PreparedData`, the same on every rank. Called
by the launcher's prepare stage and by the Trainer, before any process group exists: tokenising can take longer than a
collective's timeout.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sft_trainer.datasets.build import build_parts
from sft_trainer.datasets.cache import CacheKey, TokenCache, open_or_build
from sft_trainer.datasets.config import DataloaderConfig, DatasetEntry
from sft_trainer.datasets.evaluation import hold_out
from sft_trainer.datasets.fingerprint import tokenizer_fingerprint
from sft_trainer.datasets.order import permutation
from sft_trainer.datasets.pack import Packs, pack_samples
from sft_trainer.datasets.read import scan
from sft_trainer.datasets.template import chat_template_named
from sft_trainer.datasets.tokenize import Limits
from sftjob.base import digest
from sftjob.failure import JobFailure, Reason
from sftjob.outcome import DataReceipt

_BYTES_A_WORKER = 16 << 20
"""A worker takes seconds to start, in which one process tokenises about this much."""
_SECONDS_BETWEEN_DETAILS = 0.3


@dataclass(frozen=True)
class PreparedData:
    caches: list[TokenCache]
    first_ids: list[int]
    """Of each cache, the id of its first sample. Ids count through all datasets."""
    packs: Packs
    """Its members are sample ids."""
    pack_tokens: np.ndarray
    """[packs] int64"""
    pack_trained: np.ndarray
    """[packs] int64"""
    receipt: DataReceipt
    digest: str
    evaluation: "PreparedData | None" = None
    """What is evaluated and never trained on, packed in the same way."""

    def sample(self, sample_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [T] uint32 and which are trained [T] bool."""
        dataset = int(np.searchsorted(self.first_ids, sample_id, side="right")) - 1
        cache, row = self.caches[dataset], sample_id - self.first_ids[dataset]
        span = slice(cache.offsets[row], cache.offsets[row + 1])
        return cache.tokens[span], cache.trained[span]


def prepare_data(
    config: DataloaderConfig,
    *,
    tokenizer_path: str,
    cache_dir: Path,
    seed: int,
    on_detail: Callable[[str], None] = lambda _: None,
) -> PreparedData:
    """Raises JobFailure, for bad lines with file, line and field."""
    tokenizer = tokenizer_fingerprint(tokenizer_path)
    caches = [
        _cache(config, entry, tokenizer, tokenizer_path=tokenizer_path, cache_dir=cache_dir, on_detail=on_detail)
        for entry in config.dataset_config_list
    ]
    first_ids = [sum(cache.meta.samples for cache in caches[:index]) for index in range(len(caches))]
    ratios = [entry.dataset.sample_ratio for entry in config.dataset_config_list]
    drawn = np.concatenate(
        [
            first + _drawn(cache.meta.samples, ratio, seed=(seed, 1, index))
            for index, (cache, first, ratio) in enumerate(zip(caches, first_ids, ratios, strict=True))
        ]
    )
    if not len(drawn):
        raise _nothing_left(config, caches)
    prepared = _packed(config, caches, first_ids, drawn, seed=seed)
    if config.evaluation is None:
        return prepared
    if config.evaluation.fraction is not None:
        trained, held = hold_out(drawn, fraction=config.evaluation.fraction, seed=seed)
        if not len(trained):
            raise _nothing_left(config, caches)
        evaluation = _packed(config, caches, first_ids, held, seed=seed)
        prepared = _packed(config, caches, first_ids, trained, seed=seed)
    else:
        own = config.model_copy(
            update={"dataset_config_list": config.evaluation.dataset_config_list, "evaluation": None}
        )
        evaluation = prepare_data(
            own, tokenizer_path=tokenizer_path, cache_dir=cache_dir, seed=seed, on_detail=on_detail
        )
    return replace(
        prepared,
        evaluation=evaluation,
        receipt=prepared.receipt.model_copy(update={"held_out": evaluation.receipt.samples}),
        digest=digest(
            {"training": prepared.digest, "evaluation": evaluation.digest, "fraction": config.evaluation.fraction}
        ),
    )


def _packed(
    config: DataloaderConfig, caches: list[TokenCache], first_ids: list[int], drawn: np.ndarray, *, seed: int
) -> PreparedData:
    """The samples with these ids."""
    ratios = [entry.dataset.sample_ratio for entry in config.dataset_config_list]
    lengths = np.concatenate([np.diff(cache.offsets) for cache in caches])[drawn]
    trained = np.concatenate([cache.trained_counts for cache in caches])[drawn].astype(np.int64)
    packs = pack_samples(lengths, max_length=config.pack_max_length, level=config.pack_level, seed=seed)
    return PreparedData(
        caches=caches,
        first_ids=first_ids,
        packs=Packs(members=drawn[packs.members], offsets=packs.offsets),
        pack_tokens=np.add.reduceat(lengths[packs.members], packs.offsets[:-1]),
        pack_trained=np.add.reduceat(trained[packs.members], packs.offsets[:-1]),
        receipt=DataReceipt(
            samples=len(drawn),
            tokens=int(lengths.sum()),
            trained_tokens=int(trained.sum()),
            truncated=int(np.concatenate([cache.is_cut for cache in caches])[drawn].sum()),
            dropped=sum(cache.meta.dropped for cache in caches),
            packs=len(packs),
        ),
        digest=digest(
            {
                "caches": [cache.meta.key.digest() for cache in caches],
                "sampleRatios": ratios,
                "packing": [config.pack_level, config.pack_max_length],
                "seed": seed,
            }
        ),
    )


def _cache(
    config: DataloaderConfig,
    entry: DatasetEntry,
    tokenizer: dict[str, str],
    *,
    tokenizer_path: str,
    cache_dir: Path,
    on_detail: Callable[[str], None],
) -> TokenCache:
    path, template = entry.dataset.anno_path, entry.tokenize_fn.chat_template
    found = scan(path, ranges=_workers(path, config.num_workers))
    limits = Limits(max_length=config.max_length(entry), overlong=config.overlong)
    key = CacheKey(
        file_sha256=found.sha256,
        tokenizer=tokenizer,
        chat_template=chat_template_named(template) if template else None,
        max_length=limits.max_length,
        overlong=limits.overlong,
    )
    prefix = f"{entry.dataset.name}: " if len(config.dataset_config_list) > 1 else ""
    tell = _at_most_every(_SECONDS_BETWEEN_DETAILS, on_detail)
    folder = entry.dataset.cache_dir or cache_dir
    try:
        return open_or_build(
            folder,
            key,
            build=lambda temporary: build_parts(
                path,
                found,
                tokenizer_path=tokenizer_path,
                chat_template=template,
                limits=limits,
                folder=temporary,
                on_rows=lambda rows: tell(f"{prefix}{rows} of {found.lines} rows"),
            ),
            on_wait=lambda: tell(f"{prefix}another process tokenises {path.name}"),
        )
    except OSError as error:
        raise JobFailure(
            Reason.STORAGE_UNAVAILABLE,
            f"{error.filename or folder}: {error.strerror}; name a cache folder that can be written and has room",
        ) from error


def _workers(path: Path, most: int) -> int:
    size = path.stat().st_size if path.is_file() else 0
    return max(1, min(most, size // _BYTES_A_WORKER))


def _drawn(samples: int, ratio: float, *, seed: tuple[int, ...]) -> np.ndarray:
    """Indices of the samples: all as often as the ratio is whole, and of the rest a seeded choice, in file order."""
    whole, rest = divmod(ratio, 1.0)
    part = np.sort(permutation(samples, seed=seed)[: round(rest * samples)])
    return np.concatenate([np.tile(np.arange(samples), int(whole)), part])


def _nothing_left(config: DataloaderConfig, caches: list[TokenCache]) -> JobFailure:
    counts = [
        f"{entry.dataset.anno_path}: of {cache.meta.rows} chats {cache.meta.dropped} are dropped, longer than "
        f"{cache.meta.key.max_length} tokens or without a trained token within them, and sample_ratio is "
        f"{entry.dataset.sample_ratio}"
        for entry, cache in zip(config.dataset_config_list, caches, strict=True)
    ]
    return JobFailure(
        Reason.INVALID_DATA, "\n".join(counts) + "; nothing is left to train, raise pack_max_length or sample_ratio"
    )


def _at_most_every(seconds: float, tell: Callable[[str], None]) -> Callable[[str], None]:
    last = -seconds

    def tell_sometimes(detail: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(detail)

    return tell_sometimes
