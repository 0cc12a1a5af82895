"""The sum of gradients over ranks, in buckets that travel while the backward pass still runs.

Buckets follow the order of parameters, not of arrival, so a run repeats its bits. Each bucket starts when its gradients and those of all
buckets before it are there, which is the same order on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swav_platform.methods.comm import Comm
from swav_platform.training.collectives import sum_together

LAST_BYTES = 2**20  # of the bucket that nothing hides: the first layers, whose gradients come last
BUCKET_BYTES = 16 * 2**20


class GradientSum:
    """Sums the gradients of `parameters` over ranks, in place. One rank alone does nothing."""

    def __init__(self, parameters: Sequence[nn.Parameter], comm: Comm) -> None:
        self._comm, self._sent, self._hooks = comm, list[tuple[list[Tensor], Callable[[], Tensor]]](), list[Any]()
        self._later: Callable[[Tensor], Callable[[], Tensor]] | None = getattr(comm, "sum_later", None) if comm.size > 1 else None
        self._buckets = _buckets(parameters) if comm.size > 1 else []
        self._missing = [len(bucket) for bucket in self._buckets]

    def start(self) -> None:
        """Called before the last backward pass of the step: sends buckets from now on as soon as they are complete."""
        if self._later is None:
            return
        for number, bucket in enumerate(self._buckets[:-1]):  # the last one travels with the rest
            for parameter in bucket:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number)))

    @property
    def sent(self) -> int:
        """Number of buckets that began to travel during the backward pass."""
        return len(self._sent)

    def finish(self, rest: Sequence[Tensor]) -> None:
        """Sums what has not been sent, together with `rest`, and waits for all. Gradients that are None are left out."""
        for hook in self._hooks:
            hook.remove()
        left = [p.grad for bucket in self._buckets[len(self._sent) :] for p in bucket if p.grad is not None]
        sum_together([*left, *rest], self._comm)
        for gradients, wait in self._sent:
            _spread(wait(), gradients)

    def _arrived(self, number: int) -> None:
        self._missing[number] -= 1
        while len(self._sent) < len(self._buckets) - 1 and not self._missing[len(self._sent)]:
            gradients = [p.grad for p in self._buckets[len(self._sent)] if p.grad is not None]
            assert self._later is not None
            self._sent.append((gradients, self._later(torch.cat([g.reshape(-1) for g in gradients]))))


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """In the order in which the backward pass reaches them: last layers first, first layers in a small bucket of their own."""
    found: list[list[nn.Parameter]] = [[]]
    room = LAST_BYTES
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if found[-1] and size > room:
            found.append([])
            room = BUCKET_BYTES
        found[-1].append(parameter)
        room -= size
    return found[::-1]


def _spread(total: Tensor, into: Sequence[Tensor]) -> None:
    for tensor, part in zip(into, torch.split(total, [t.numel() for t in into]), strict=True):
        tensor.copy_(part.view(tensor.shape))
