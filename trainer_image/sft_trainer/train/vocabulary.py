"""Whether the data's tokens are tokens of the model: a GPU would only say that an assertion of its own failed.

Called by the prepare stage, and where a model is loaded, before its weights are read.
"""

from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.model.config import origin, trained_config, transformers_config
from sft_trainer.run import RunOptions
from sftjob.failure import JobFailure, Reason


def refuse_unknown_tokens(data: PreparedData, options: RunOptions) -> None:
    """Raises JobFailure(INVALID_CONFIGURATION); whatever `trained_config` raises, too."""
    fields = trained_config(options.model_cfg, load_from=options.load_from)
    rows = transformers_config(fields, said_by=origin(options.load_from)).get_text_config(decoder=True).vocab_size
    held_out = data.evaluation.caches if data.evaluation else []
    largest = max(cache.meta.largest_token for cache in [*data.caches, *held_out])
    if largest < rows:
        return
    remedy = f"use another tokenizer, or a vocab_size of at least {largest + 1}"
    if options.load_from:
        remedy = (
            "use the tokenizer that belongs to the model, or give the model rows for its tokens first "
            "(resize_token_embeddings(len(tokenizer)), then save_pretrained)"
        )
    raise JobFailure(
        Reason.INVALID_CONFIGURATION,
        f"{options.tokenizer_path}: makes token {largest} of the data, but the model's embedding has {rows} rows; "
        f"{remedy}",
    )
