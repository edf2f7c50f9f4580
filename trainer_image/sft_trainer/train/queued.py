"""Steps that are queued on the device, and their numbers when it has computed them.

Called by the loop. A GPU works behind its host: asked for a number, the host waits until all that is queued is done and
the GPU then waits for the host. So the numbers of a step are copied to the host in their turn, and read while the next
step is queued already. A CPU has nothing queued, and is read at once.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class QueuedStep:
    step: int
    rate: float
    trained_tokens: int
    """Over all ranks."""
    micro_batches: int
    """Of this rank."""
    began: float
    """By time.perf_counter()."""
    data_seconds: float
    """That it waited for its batches."""
    host_seconds: float
    """That it took to be queued: where the device waits for its host, a step takes no less."""
    numbers: "LateNumbers"
    """This rank's summed loss; all ranks' gradient norm; 1 where the step was skipped."""


class LateNumbers:
    def __init__(self, numbers: torch.Tensor) -> None:
        """Does not wait for them. `numbers` is one-dimensional."""
        self._copied: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.device.type == "cuda":
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """Waits for them, and for nothing that was queued after them."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._numbers.tolist()
        return numbers


def steps_ahead(device: torch.device) -> int:
    """How many steps the host may be ahead of what it has read: one hides its work, more would delay bad news."""
    return 1 if device.type == "cuda" else 0
