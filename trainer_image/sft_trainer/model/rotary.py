"""Models whose rotary frequencies follow the longest document of a pack, so that it would move all others in it.

The library's types `longrope` and `dynamic` take other frequencies for a whole batch once a position in it lies beyond
a length that config.json names. Up to there they are as any, and the probe, whose documents are short, sees no more.
Called when a model is loaded, and when its memory is estimated, which needs no weights. Other rotary positions have no
end, but a model has learnt them up to a length only: of that a line warns.
"""

import logging

from transformers import PreTrainedModel

from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.model import transformers_private
from sftjob.failure import JobFailure, Reason
from sftjob.options import PackLevel

log = logging.getLogger(__name__)


def refuse_packs_beyond_rotary_limit(model: PreTrainedModel, *, pack_tokens: int, level: PackLevel) -> None:
    """Raises JobFailure(INVALID_CONFIGURATION) where a document of `pack_tokens` would change the others."""
    config = model.config.get_text_config(decoder=True)
    for rope in transformers_private.rotary_parameters(config):
        if rope["rope_type"] == "longrope":
            name, limit = "original_max_position_embeddings", rope["original_max_position_embeddings"]
            # Chosen anew for each pack: a document alone in it has those that it has alone.
            alone = ", or spec.data.packing.level: none"
        elif rope["rope_type"] == "dynamic":
            # Those of a long document stay for the packs after it, and are in no checkpoint.
            name, limit, alone = "max_position_embeddings", config.max_position_embeddings, ""
        else:
            continue
        if pack_tokens > limit and not (alone and level == "none"):
            raise JobFailure(
                Reason.INVALID_CONFIGURATION,
                f"spec.data.packing.maxLength: {pack_tokens} is more than the {name} of {limit} of this "
                f"{config.model_type} model, beyond which its rotary positions ({rope['rope_type']}) depend on the "
                f"longest document of a pack; use at most {limit}{alone}",
            )


def warn_of_documents_beyond_rotary_length(model: PreTrainedModel, data: PreparedData) -> None:
    config = model.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    ropes = transformers_private.rotary_parameters(config)
    if positions is None or not ropes:
        return
    # What stretches positions (YaRN) may be counted in them, or not.
    stretched = [
        (rope.get("factor") or 1) * (rope.get("original_max_position_embeddings") or positions) for rope in ropes
    ]
    limit = int(max(positions, *stretched))
    if data.longest > limit:
        log.warning(
            "spec.data.packing.maxLength: the longest sample has %d tokens, more than the %d that this %s model is "
            "made for (max_position_embeddings): the positions behind are new to it",
            data.longest,
            limit,
            config.model_type,
        )
