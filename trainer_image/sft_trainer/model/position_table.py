"""Models whose positions are rows of a table (GPT-2, OPT, GPT-J...): beyond its end there is nothing to look up.

Called when a model is loaded; what the library says itself is an index error, on a GPU an assertion of the device's.
"""

import torch
from transformers import PreTrainedModel

from sft_trainer.datasets.prepare import PreparedData
from sftjob.failure import JobFailure, Reason

_ROWS_BEFORE_THE_FIRST = (0, 2)
"""OPT and BioGPT have some, for pads."""


def refuse_documents_beyond_position_table(model: PreTrainedModel, data: PreparedData) -> None:
    """Raises JobFailure(INVALID_CONFIGURATION) where a document of `data` is longer than the table."""
    limit = _positions(model)
    if limit is not None and data.longest > limit:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"spec.data.packing.maxLength: the longest sample has {data.longest} tokens, and the model's table of "
            f"positions {limit}; use at most {limit}, and spec.data.overlong says what becomes of longer samples",
        )


def _positions(model: PreTrainedModel) -> int | None:
    """None for a model without a table."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not tokens]
    # Sines that are looked up, as in GPT-J and CodeGen.
    tables += [buffer for name, buffer in model.named_buffers() if name.endswith("embed_positions")]
    is_table = limit is not None and any(len(table) - limit in _ROWS_BEFORE_THE_FIRST for table in tables)
    return limit if is_table else None
