"""Forwards without a backward, for the probe and for evaluation. Collective: each forward gathers shards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without gradients and without dropout; afterwards the model is as it was, and resharded."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        # The root stays gathered until a backward, as do layers that the user wants so, and there is none here: an
        # optimiser or a checkpoint made now would get the gathered copies, which no step ever reaches.
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
