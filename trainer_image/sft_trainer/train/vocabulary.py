"""Whether the data's tokens are tokens of the model: a GPU would only say that an assertion of its own failed."""

from sft_trainer.datasets.prepare import PreparedData
from sftjob.failure import JobFailure, Reason


def refuse_unknown_tokens(data: PreparedData, *, rows: int, tokenizer_path: str) -> None:
    """`rows`: those of the model's embedding. Raises JobFailure(INVALID_CONFIGURATION). Reads all tokens, on rank 0."""
    held_out = data.evaluation.caches if data.evaluation else []
    caches = data.caches if held_out is data.caches else [*data.caches, *held_out]
    largest = max(int(cache.tokens.max(initial=0)) for cache in caches)
    if largest >= rows:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"{tokenizer_path}: makes token {largest} of the data, but the model's embedding has {rows} rows; use the "
            "tokenizer that belongs to the model",
        )
