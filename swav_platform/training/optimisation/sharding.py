"""Weights, their gradients and the optimiser's state split over ranks, each holding a part (FSDP2; Rajbhandari et al. 2020,
arXiv 1910.02054). A split tensor is a DTensor; in a checkpoint it is whole again, so that any number of ranks can take it up.

Prototypes stay whole and float32 on every rank: codes are made from them outside of the network's forward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # what a run of whole weights need not import

WHOLE = "prototypes."


def shard(network: nn.Module, device: torch.device, size: int) -> None:
    """Splits `network` over the `size` ranks of the default process group, in place; names of weights stay.

    A block's weights are gathered for its forward and again for its backward pass, its gradient is summed over ranks and split.
    So all ranks must make the same passes: the same number of rows.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (size,))
    kept = {p for name, p in network.named_parameters() if name.startswith(WHOLE)}
    for block in [*_blocks(network), network]:
        module: FSDPModule = fully_shard(block, mesh=mesh, ignored_params=kept)
        module.set_gradient_divide_factor(1.0)  # a sum, as everywhere
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled one
    # Of outputs that are views of each other. They are never changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What a stage is a sequence of: modules of several layers."""
    for child in module.children():
        encoder = hasattr(child, "feature_dim")
        if isinstance(module, nn.Sequential) and not encoder and not isinstance(child, nn.Sequential) and list(child.children()):
            yield child
        else:
            yield from _blocks(child)


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "full_tensor")


def own(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory; a whole tensor is its own part."""
    return tensor.to_local() if is_split(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All ranks' parts together, on each of them; all must ask for it. In the host's memory, where there is room for many."""
    return tensor.full_tensor().cpu() if is_split(tensor) else tensor


def split_like(pattern: Tensor, tensor: Tensor) -> Tensor:
    """A whole `tensor`, which every rank has, split as `pattern` is."""
    if not is_split(pattern):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Lengths [n] of whole tensors, all of which are split or none. One sum over ranks if they are."""
    found = torch.stack(torch._foreach_norm([own(t) for t in tensors]))
    first = tensors[0]
    if not is_split(first):
        return found
    squares = found.square()
    dist.all_reduce(squares, group=first.device_mesh.get_group())
    return squares.sqrt()


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Length of all of them as one vector."""
    kept, split = [t for t in tensors if not is_split(t)], [t for t in tensors if is_split(t)]
    if not split:
        return torch.nn.utils.get_total_norm(kept)
    parts = [norms(of) for of in (kept, split) if of]
    return torch.linalg.vector_norm(torch.cat(parts))
