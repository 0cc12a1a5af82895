"""The sum of gradients in buckets, over two real processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from swav_platform.methods.comm import LocalComm
from swav_platform.training import reduction
from swav_platform.training.collectives import DistributedComm, joined
from swav_platform.training.reduction import GradientSum


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)), nn.Linear(16, 1))


def gradients(comm: DistributedComm, buckets: int, passes: int, unused: bool) -> tuple[list[torch.Tensor], list[str]]:
    """Of so many backward passes of this rank's own inputs, and the order of events."""
    reduction.LAST_BYTES, reduction.BUCKET_BYTES = 1100, {1: 10**9, 3: 3000}[buckets]
    if buckets == 1:
        reduction.LAST_BYTES = 10**9
    net, events = network(), list[str]()
    parameters = [*net.parameters(), *([nn.Parameter(torch.ones(4))] if unused else [])]
    later = comm.sum_later
    comm.sum_later = lambda x: (events.append("send"), later(x))[1]  # type: ignore[method-assign]
    net[0].register_full_backward_hook(lambda *_: events.append("first layer"))
    total = GradientSum(parameters, comm)
    for number in range(passes):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(10 * comm.rank + number), requires_grad=True)
        loss = net(x).square().sum()
        if number + 1 == passes:
            total.start()
        loss.backward()
    rest = torch.ones(3)
    total.finish([rest])
    assert rest.tolist() == [2, 2, 2]
    comm.sum_later = later  # type: ignore[method-assign]
    return [p.grad for p in parameters if p.grad is not None], events


def main(rank: int, size: int, store: str, folder: Path) -> None:
    with joined(rank, size, f"file://{store}") as comm:
        for passes in (1, 3):
            whole, _ = gradients(comm, 1, passes, unused=False)
            parts, events = gradients(comm, 3, passes, unused=False)
            assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
            assert events.index("send") < len(events) - 1 - events[::-1].index("first layer"), "during the backward pass"
            assert events[: passes - 1] == ["first layer"] * (passes - 1), "not before the last one"
            odd, _ = gradients(comm, 3, passes, unused=True)
            assert all(torch.equal(a, b) for a, b in zip(whole, odd, strict=True)), "a weight without a gradient"
        (folder / f"done-{rank}").touch()


@pytest.mark.stack
def test_buckets_are_the_sum_in_one_block(run_ranks: Callable[..., None], tmp_path: Path) -> None:
    run_ranks(Path(__file__), 2, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]


def test_one_rank_alone_does_nothing() -> None:
    net = network()
    total = GradientSum(list(net.parameters()), LocalComm())
    total.start()
    net(torch.ones(2, 16)).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    total.finish([torch.ones(1)])
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
