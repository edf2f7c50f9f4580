"""What replaces the root module's `forward`: a pack in, the summed loss out, all inside the root's own hooks.

T tokens of a pack, B documents, N trained positions, D hidden, V vocabulary. The head has to be used in here: with
FSDP2 its weight is whole only between the root's pre-forward and its backward.
"""

# ruff: noqa: N806 -- a tensor's name ends with its shape

import functools
from typing import Literal

import torch
from transformers import PreTrainedModel

from sft_trainer.loss.cross_entropy import HeadArithmetic, summed_cross_entropy
from sft_trainer.model.attention import block_masks, has_softcaps_or_sinks
from sft_trainer.model.bf16_weights import Bf16Weights
from sft_trainer.model.graphs import CapturedLayers
from sft_trainer.packed import PackedBatch
from sftjob.options import CELossConfig

Output = Literal["loss", "logits", "own_logits"]


class PackForward:
    """`model(batch)` is the fp32 sum of cross-entropy over the trained labels, a scalar.

    `model(batch, output="logits")` is [1, T, V] by the path of the loss; `model(batch, output="own_logits")` is by the
    class's own forward, of `batch.input_ids` [rows, T] alone: each row one document.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        loss_cfg: CELossConfig,
        autocast_to: torch.dtype | None,
        bf16_weights: Bf16Weights | None,
        device: torch.device,
        compiled: bool,
        captured: bool,
    ) -> None:
        """`captured`: the layers become CUDA graphs, where all their weights are this process's own."""
        # Methods of the class, which FSDP2 does not replace; an attribute that is a module would be registered twice.
        self._own_forward = type(model).forward
        self._loss_cfg = loss_cfg
        self._arithmetic = head_arithmetic(model)
        self._autocast_to = autocast_to
        self._bf16_weights = bf16_weights
        self._device_type = device.type
        self._compiled = compiled
        self._captured = None
        if captured:
            weight_of = bf16_weights.weight_of if bf16_weights else lambda leaf: leaf
            self._captured = CapturedLayers(device, weight_of=weight_of)
        self._shares_masks = has_softcaps_or_sinks(model)

    def __call__(self, model: PreTrainedModel, batch: PackedBatch, *, output: Output = "loss") -> torch.Tensor:
        if self._bf16_weights:
            self._bf16_weights.renew()
        with torch.autocast(self._device_type, dtype=self._autocast_to, enabled=self._autocast_to is not None):
            if output == "own_logits":
                return self._own_forward(model, input_ids=batch.input_ids, use_cache=False).logits
            if self._captured and output == "loss" and torch.is_grad_enabled():
                hidden_1TD = self._captured.hidden_states(batch, functools.partial(self._hidden_states, model))
            else:
                hidden_1TD = self._hidden_states(model, batch)
            head = model.get_output_embeddings()
            if output == "logits":
                return self._arithmetic.apply(head(hidden_1TD))
            # Where nothing is trained this is empty and still part of the graph: every rank reduces every gradient.
            return summed_cross_entropy(
                hidden_1TD[0].index_select(0, batch.trained_rows),
                weight_VD=head.weight,
                bias_V=head.bias,
                labels_N=batch.labels[0].index_select(0, batch.trained_rows),
                config=self._loss_cfg,
                arithmetic=self._arithmetic,
                compiled=self._compiled,
            )

    def release_memory(self) -> bool:
        return self._captured is not None and self._captured.release()

    def _hidden_states(self, model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
        starts = batch.cu_seqlens
        positions_T = torch.arange(batch.input_ids.shape[1], dtype=starts.dtype, device=starts.device)
        documents_T = torch.searchsorted(starts[1:], positions_T, right=True, out_int32=True)
        masks = {"block_masks": block_masks(model, documents_T)} if self._shares_masks else {}
        hidden_1TD: torch.Tensor = model.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            cu_seq_lens_q=starts,
            cu_seq_lens_k=starts,
            # Convolutions of hybrid models isolate documents by this one.
            seq_idx=documents_T.unsqueeze(0),
            use_cache=False,
            **masks,
        ).last_hidden_state
        return hidden_1TD


def release_memory(model: torch.nn.Module) -> bool:
    """Of what only makes it faster, for good; whether there was any. Gradients must have been dropped before."""
    # `build` has bound it to the model.
    forward: PackForward = model.forward.__func__  # type: ignore[attr-defined]
    return forward.release_memory()


def head_arithmetic(model: PreTrainedModel) -> HeadArithmetic:
    """From the configuration's fields by their names in the library. The probe tells where a model means others."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return HeadArithmetic(scale=scale / divisor, softcap=getattr(config, "final_logit_softcapping", None))
