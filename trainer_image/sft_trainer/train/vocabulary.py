"""Whether the data's tokens are tokens of the model: a GPU would only say that an assertion of its own failed."""

from sft_trainer.datasets.prepare import PreparedData
from sftjob.failure import JobFailure, Reason


def refuse_unknown_tokens(data: PreparedData, *, rows: int, tokenizer_path: str) -> None:
    """`rows`: those of the model's embedding. Raises JobFailure(INVALID_CONFIGURATION)."""
    held_out = data.evaluation.caches if data.evaluation else []
    largest = max(cache.meta.largest_token for cache in [*data.caches, *held_out])
    if largest >= rows:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"{tokenizer_path}: makes token {largest} of the data, but the model's embedding has {rows} rows; use the "
            "tokenizer that belongs to the model",
        )
