"""The layers' fp32 weights in bf16, made once a step: autocast makes them anew for every micro-batch.

Called by `build` and `forward`, on one process in mixed precision; FSDP2 casts by itself. The numbers are autocast's,
to the bit: the same copy goes into the product, and its gradient in bf16 is added to the weight's in fp32, without
being written as fp32 before.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


class _Linear(torch.nn.Linear):
    """Its copy is no attribute that a module registers: states and optimisers know the weight alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.__dict__["bf16_weight"], self.bias)


class Bf16Weights:
    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        """Of their linear modules, which may be without memory yet. Only `renew` makes them usable."""
        self._modules = [module for layer in layers for module in layer.modules() if type(module) is torch.nn.Linear]
        self._weights: dict[torch.Tensor, torch.nn.Parameter] = {}
        """By their copies."""
        for module in self._modules:
            module.__class__ = _Linear

    @torch.no_grad()
    def renew(self) -> None:
        """Before a forward. Weights stand still only while gradients are summed: whoever has one is not copied anew.

        (A fused optimiser's update is not seen in a weight's version.)
        """
        outdated = []
        for module in self._modules:
            copy = module.__dict__.get("bf16_weight")
            if copy is None or self._weights[copy] is not module.weight:
                copy = module.__dict__["bf16_weight"] = _copy_that_adds_gradients_to(module.weight)
                self._weights[copy] = module.weight
            elif module.weight.grad is None:
                outdated.append(module)
        if outdated:
            # A foreach: hundreds of small kernels would wait for the host.
            torch._foreach_copy_(
                [module.__dict__["bf16_weight"] for module in outdated], [module.weight for module in outdated]
            )

    def weight_of(self, leaf: torch.Tensor) -> torch.Tensor:
        """The weight that `leaf` is a copy of; itself where it is none."""
        return self._weights.get(leaf, leaf)


def _copy_that_adds_gradients_to(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    # A parameter has the same shape in all calls of a compiled layer; any other tensor's is watched.
    copy = torch.nn.Parameter(weight.to(torch.bfloat16), requires_grad=weight.requires_grad)

    def add_gradient(copy: torch.Tensor) -> None:
        gradient, copy.grad = copy.grad, None
        assert gradient is not None, "called once it is there"
        if weight.grad is None:
            weight.grad = gradient.to(weight.dtype)
        else:
            weight.grad += gradient

    if copy.requires_grad:
        copy.register_post_accumulate_grad_hook(add_gradient)
    return copy
