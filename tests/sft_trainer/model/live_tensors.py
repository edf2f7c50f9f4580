"""Which tensors that a piece of work has made are still there: what is kept, whoever keeps it."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts storages once, whatever looks into them, and none that was there before."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._made: dict[StorageWeakRef, tuple[int, torch.Size]] = {}
        self._weights = {StorageWeakRef(parameter.untyped_storage()) for parameter in model.parameters()}

    def __torch_dispatch__(self, operator: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._made.setdefault(StorageWeakRef(storage), (storage.nbytes(), tensor.shape))
        return made

    def nbytes(self, *, but: torch.Size | None = None) -> int:
        """Of those alive; `but` leaves out tensors of a shape."""
        return sum(
            size
            for storage, (size, shape) in self._made.items()
            if not storage.expired() and storage not in self._weights and shape != but
        )
