"""`Comm` over torch.distributed, with counts and times, and process groups outside of Ray Train."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from swav_platform.errors import UserError
from swav_platform.methods.comm import Comm

PATIENCE = 3600.0
"""Timeout of a collective in seconds. Ranks wait while rank 0 indexes shards or writes a checkpoint, while a rank compiles, and while one
waits for unreachable storage."""


class DistributedComm:
    """The default process group.

    calls: number of collectives by kind. seconds: time spent in them; None on GPUs, where a call returns before it is done.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.calls: Counter[str] = Counter()
        self._device = "cuda" if dist.get_backend() == "nccl" else None
        self.seconds: float | None = None if self._device else 0.0

    def sum(self, x: Tensor) -> Tensor:
        return self._timed("sum", lambda: self._reduce(x, dist.ReduceOp.SUM))

    def sum_later(self, x: Tensor) -> Callable[[], Tensor]:
        """Starts a sum, which overwrites `x`. The returned function waits for it and returns it.

        Several may be under way; all ranks must start them in one order. `seconds` has the waits only.
        """
        moved = x.contiguous().to(self._device)
        work = dist.all_reduce(moved, async_op=True)
        self.calls["sum"] += 1

        def wait() -> Tensor:
            start = time.perf_counter()
            work.wait()
            if self.seconds is not None:
                self.seconds += time.perf_counter() - start
            return moved.to(x.device)

        return wait

    def max(self, x: Tensor) -> Tensor:
        return self._timed("max", lambda: self._reduce(x, dist.ReduceOp.MAX))

    def gather_in_order(self, x: Tensor) -> Tensor:
        return self._timed("gather", lambda: self._gather(x))

    def gather_to_first(self, x: Tensor) -> Tensor:
        return self._timed("gather_to_first", lambda: self._gather_to_first(x))

    def broadcast(self, x: Tensor) -> Tensor:
        return self._timed("broadcast", lambda: self._broadcast(x))

    def _timed(self, kind: str, collective: Callable[[], Tensor]) -> Tensor:
        start = time.perf_counter()
        result = collective()
        self.calls[kind] += 1
        if self.seconds is not None:
            self.seconds += time.perf_counter() - start
        return result

    def _reduce(self, x: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        moved = x.contiguous().to(self._device)
        dist.all_reduce(moved, operation)
        return moved.to(x.device)

    def _gather(self, x: Tensor) -> Tensor:
        padded, sizes = self._padded(x)
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]).to(x.device)

    def _gather_to_first(self, x: Tensor) -> Tensor:
        padded, sizes = self._padded(x)
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(padded, parts)
        return x[:0] if parts is None else torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]).to(x.device)

    def _padded(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """x on the device of the collectives, as long as the longest one of all ranks, and the lengths of all ranks."""
        moved = x.contiguous().to(self._device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=moved.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(x)], device=moved.device))
        lengths = [int(n) for n in sizes]
        padded = moved.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = moved
        return padded, lengths

    def _broadcast(self, x: Tensor) -> Tensor:
        moved = x.contiguous().to(self._device)
        dist.broadcast(moved, src=0)
        return moved.to(x.device)


@contextmanager
def joined(
    rank: int, size: int, init_method: str = "env://", backend: str = "gloo", timeout: float = 300
) -> Iterator[DistributedComm]:
    """Joins a process group for the duration of a `with` block.

    init_method: `env://` under torchrun, `file:///path/of/a/new/file` for processes of one machine. timeout: in seconds.
    """
    dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    try:
        yield DistributedComm()
        dist.barrier()
        time.sleep(0.1)  # destroying the group while gloo's threads still run the barrier aborts the process
    finally:
        dist.destroy_process_group()


def sum_together(tensors: Sequence[Tensor], comm: Comm) -> None:
    """Sums each tensor over ranks in place, in one collective. All tensors have the same dtype and device."""
    if comm.size == 1 or not tensors:
        return
    total = comm.sum(torch.cat([t.reshape(-1) for t in tensors]))
    for tensor, part in zip(tensors, torch.split(total, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def gather_bytes(data: bytes, comm: Comm) -> list[bytes]:
    """Returns the `data` of every rank, in rank order, on all ranks."""
    return _gathered(data, comm.gather_in_order)


def broadcast_bytes(data: bytes, comm: Comm) -> bytes:
    """Returns the `data` of rank 0 on all ranks."""
    size = int(comm.broadcast(torch.tensor([len(data)]))[0])
    sent = (
        torch.frombuffer(bytearray(data), dtype=torch.uint8) if comm.rank == 0 and size else torch.zeros(size, dtype=torch.uint8)
    )
    return comm.broadcast(sent).cpu().numpy().tobytes()


def gather_bytes_to_first(data: bytes, comm: Comm) -> list[bytes]:
    """Returns the `data` of every rank, in rank order, on rank 0; an empty list on the others."""
    return _gathered(data, comm.gather_to_first)


def _gathered(data: bytes, gather: Callable[[Tensor], Tensor]) -> list[bytes]:
    sizes = gather(torch.tensor([len(data)])).tolist()
    gathered = gather(torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)])
    raw = gathered.cpu().numpy().tobytes()
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [raw[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def all_or_none(work: Callable[[], None], comm: Comm) -> None:
    """Runs `work` on each rank. If it fails on one rank, every rank raises that UserError."""
    own: UserError | None = None
    try:
        work()
    except UserError as error:
        own = error
    problems = [message for message in gather_bytes(str(own or "").encode(), comm) if message]
    if own is not None:
        raise own
    if problems:
        raise UserError(problems[0].decode())


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
