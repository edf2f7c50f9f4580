"""Cross-entropy of the trained positions, from the hidden states before the head.

N trained positions of a pack, D hidden, V vocabulary, C chunk size. The root forward in `sft_trainer.model.forward`
calls `summed_cross_entropy`; nothing here knows of batches, ranks or denominators.
"""

# ruff: noqa: N803, N806 -- a tensor's name ends with its shape

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from sftjob.options import CELossConfig


@dataclass(frozen=True)
class HeadArithmetic:
    """What a model does to the output of its head: `softcap * tanh(scale * z / softcap)`."""

    scale: float = 1.0
    """Granite's 1 / `logits_scaling`, Cohere's `logit_scale`."""
    softcap: float | None = None
    """Gemma's `final_logit_softcapping`."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    @property
    def needs_logits(self) -> bool:
        """Whether `pull_back` looks at them."""
        return self.softcap is not None

    def pull_back(self, grad_NV: torch.Tensor, logits_NV: torch.Tensor) -> torch.Tensor:
        """The gradient before `apply`, from the gradient after it and what it returned."""
        if self.softcap is not None:
            grad_NV = grad_NV * (1 - (logits_NV / self.softcap).square())
        return grad_NV * self.scale if self.scale != 1.0 else grad_NV


def summed_cross_entropy(
    hidden_ND: torch.Tensor,
    *,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    config: CELossConfig,
    arithmetic: HeadArithmetic,
    compiled: bool = False,
) -> torch.Tensor:
    """The fp32 sum over N of -log softmax(head(hidden))[label]; 0 and still differentiable where N is 0.

    `compiled`: between its products a chunk's logits are read and written as few times as can be.
    """
    if config.mode == "eager":
        logits_NV = arithmetic.apply(F.linear(hidden_ND, weight_VD, bias_V).float())
        return F.cross_entropy(logits_NV, labels_N, reduction="sum")
    return _ChunkedCrossEntropy.apply(
        hidden_ND, weight_VD, bias_V, labels_N, config.chunk_size, arithmetic, torch.is_grad_enabled(), compiled
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Both gradients are computed along with the loss, so that the logits of one chunk exist at a time and none twice.

    The idea is that of Liger Kernel's fused linear cross-entropy (Hsu et al., 2024).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        chunk_size: int,
        arithmetic: HeadArithmetic,
        with_gradients: bool,
        compiled: bool,
    ) -> torch.Tensor:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        head_VD = weight_VD.to(dtype)
        loss = hidden_ND.new_zeros((), dtype=torch.float32)
        wants_hidden, wants_weight, wants_bias = (with_gradients and wanted for wanted in ctx.needs_input_grad[:3])
        grad_hidden_ND = torch.zeros_like(hidden_ND) if wants_hidden else None
        # Summed over chunks in fp32: in bf16 the later chunks of a long pack would be rounded away.
        grad_weight_VD: torch.Tensor | None = None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if wants_bias else None
        of_logits = _compiled_of_logits() if compiled else _of_logits

        with torch.autocast(device, enabled=False):
            for start in range(0, len(labels_N), chunk_size):
                hidden_CD = hidden_ND[start : start + chunk_size].to(dtype)
                labels_C1 = labels_N[start : start + chunk_size, None]
                logits_CV = F.linear(hidden_CD, head_VD, None if bias_V is None else bias_V.to(dtype))
                if compiled:
                    # Else the first chunk's rows would be compiled for alone, and those of the next attempt's anew.
                    for tensor in (logits_CV, labels_C1):
                        torch._dynamo.maybe_mark_dynamic(tensor, 0)
                chunk_loss, grad_CV = of_logits(logits_CV, labels_C1, arithmetic, with_gradients)
                loss += chunk_loss
                if grad_CV is None:
                    continue
                if grad_bias_V is not None:
                    grad_bias_V += grad_CV.sum(dim=0, dtype=torch.float32)
                if grad_hidden_ND is not None:
                    grad_hidden_ND[start : start + chunk_size] = grad_CV @ head_VD
                if wants_weight:
                    grad_weight_VD = _plus_product(grad_weight_VD, grad_CV.T, hidden_CD)
        if wants_weight and grad_weight_VD is None:
            grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD, grad_bias_V)
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: a second V x D would undo what the chunks save. autograd refuses a second backward by itself.
        scaled = (
            None if grad is None else grad.mul_(grad_loss).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None, None, None)


def _of_logits(
    head_output_CV: torch.Tensor, labels_C1: torch.Tensor, arithmetic: HeadArithmetic, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The summed loss, a scalar in fp32, and its gradient with respect to the head's output, in that one's dtype."""
    logits_CV = arithmetic.apply(head_output_CV.float())
    max_C1 = logits_CV.amax(dim=-1, keepdim=True)
    label_logits_C1 = logits_CV.gather(-1, labels_C1)
    # In place, for nothing on the way is larger: logits, then exponentials, then their gradient.
    if logits_CV.device.type == "cpu" and not torch.compiler.is_compiling():
        # Its kernel is done with a row while the row is in the processor's cache.
        grad_CV = torch.softmax(logits_CV, dim=-1, out=None if arithmetic.needs_logits else logits_CV)
        sum_C1 = grad_CV.amax(dim=-1, keepdim=True).reciprocal_()
    else:
        shifted_CV = logits_CV - max_C1 if arithmetic.needs_logits else logits_CV.sub_(max_C1)
        grad_CV = shifted_CV.exp_()
        sum_C1 = grad_CV.sum(dim=-1, keepdim=True)
        grad_CV.div_(sum_C1)
    loss = (sum_C1.log() + max_C1 - label_logits_C1).sum()
    if not with_gradient:
        return loss, None
    label_grad_C1 = arithmetic.pull_back(grad_CV.gather(-1, labels_C1) - 1, label_logits_C1)
    grad_CV = arithmetic.pull_back(grad_CV, logits_CV).to(head_output_CV.dtype)
    # Last, into what is finished: in between, a compiled softmax would be written out for it.
    return loss, grad_CV.scatter_(-1, labels_C1, label_grad_C1.to(grad_CV.dtype))


@functools.cache
def _compiled_of_logits() -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    compiled: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = torch.compile(_of_logits)
    return compiled


def _plus_product(sum_VD: torch.Tensor | None, left_VC: torch.Tensor, right_CD: torch.Tensor) -> torch.Tensor:
    """In place and in fp32, whatever the factors are in: on a GPU by the product's own kernel, which rounds nothing on
    the way. The product alone where there is no sum yet: zeros would be written, and read, for nothing."""
    if left_VC.dtype == torch.float32:
        return left_VC @ right_CD if sum_VD is None else sum_VD.addmm_(left_VC, right_CD)
    if left_VC.device.type == "cuda":
        if sum_VD is None:
            return torch.mm(left_VC, right_CD, out_dtype=torch.float32)
        return torch.addmm(sum_VD, left_VC, right_CD, out_dtype=torch.float32, out=sum_VD)
    product_VD = (left_VC @ right_CD).float()
    return product_VD if sum_VD is None else sum_VD.add_(product_VD)
