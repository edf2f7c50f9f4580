"""The ranks that train together, as torchrun started them: one process needs no process group."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from sftjob.failure import JobFailure, Reason

T = TypeVar("T")

_NO_TIMEOUT = timedelta(days=365)
"""torch has no word for none."""

_WORLDS = itertools.count()
"""Of this process; every rank opens as many."""


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None
    """One dimension over all ranks; None on one process."""
    timeout: timedelta | None = None
    """That a rank waits for the others in a collective; None for torch's own."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def leads_node(self) -> bool:
        """One rank of each node does: what a node needs once is done by it."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def from_first(self, work: Callable[[], T]) -> T:
        """Does the work on rank 0 and returns its result on every rank; a JobFailure there is raised on every rank."""
        if self.size == 1:
            return work()
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = work()
            except JobFailure as failure:
                answer[1] = (failure.reason, failure.message)
        # All ranks, CPU: they wait here for what rank 0 found, did or could not do.
        dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
        if answer[1]:
            raise JobFailure(*answer[1])
        return answer[0]

    def from_each(self, work: Callable[[], T]) -> list[T]:
        """Does the work on every rank and returns all results, in the order of ranks, on every rank; the first
        JobFailure is raised on every rank."""
        if self.size == 1:
            return [work()]
        said: list[Any] = [None] * self.size
        try:
            answer = work()
        except JobFailure as failure:
            answer = failure
        # All ranks, CPU: what can only differ by mistake is compared, and what each node has done is known to all.
        dist.all_gather_object(said, answer)
        for one in said:
            if isinstance(one, JobFailure):
                raise one
        return said

    def sum(self, value: float) -> float:
        """Over all ranks, in double precision."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        # All ranks, CPU: for what is shown, never for what is trained.
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total.item()

    def max(self, value: float) -> float:
        if self.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64)
        # All ranks, CPU: one float; what one rank knows, all know.
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.item()


def this_rank() -> tuple[int, int]:
    """(rank, number of ranks), known before any process group exists."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def open_world(*, is_watched: bool) -> Iterator[World]:
    """Collectives run over NCCL for GPU tensors and over gloo for CPU tensors.

    `is_watched`: by a launcher, which ends ranks that stand still, knows where they are, and goes by the job's own
    `progressDeadlineSeconds`; torch would end them after 10 or 30 minutes, though one of them is still writing a file.
    """
    rank, size = this_rank()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield World(rank=0, size=1, device=device, mesh=None)
        return
    timeout = _NO_TIMEOUT if is_watched else None
    if dist.is_initialized():
        # A script has opened it, and closes it.
        _refuse_without_cpu()
        yield World(rank=rank, size=size, device=device, mesh=init_device_mesh(device.type, (size,)))
        return
    patience = {"timeout": timeout} if timeout else {}
    store, _, _ = next(dist.rendezvous("env://", rank, size, **patience))
    # Its own for each of a script's Trainers: torch names groups anew, and would find the addresses of those before.
    store = dist.PrefixStore(f"world-{next(_WORLDS)}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    mesh = init_device_mesh(device.type, (size,))
    yield World(rank=rank, size=size, device=device, mesh=mesh, timeout=timeout)
    # All ranks, and only where all have come to the end: NCCL waits in here for those of the node. One that fails alone
    # would not live to tell why, for the others are in the collectives that it has left.
    dist.destroy_process_group()


def _refuse_without_cpu() -> None:
    if "cpu:" not in dist.get_backend_config():
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"the script has opened a process group of {dist.get_backend_config()}, without a backend for the CPU; use "
            "init_process_group('cpu:gloo,cuda:nccl'), or leave it to the Trainer",
        )
