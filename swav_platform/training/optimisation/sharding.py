"""Weights, gradients and optimiser state split over ranks (FSDP2; Rajbhandari et al. 2020, arXiv 1910.02054).

A split tensor is a DTensor. Checkpoints hold whole tensors, so that any number of ranks can resume from them. Prototypes stay whole
and float32 on every rank, since codes are computed from them outside of the network's forward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # not imported by runs with whole weights

WHOLE = "prototypes."


def shard(network: nn.Module, device: torch.device, size: int) -> None:
    """Splits `network` in place over the `size` ranks of the default process group. Names of weights do not change.

    A block's weights are gathered for its forward and again for its backward pass; its gradient is summed over ranks and split.
    All ranks must therefore make the same number of passes, that is, have the same number of rows.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (size,))
    kept = {p for name, p in network.named_parameters() if name.startswith(WHOLE)}
    for block in [*_blocks(network), network]:
        module: FSDPModule = fully_shard(block, mesh=mesh, ignored_params=kept)
        module.set_gradient_divide_factor(1.0)  # sum gradients instead of averaging them
        module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled reduction
    # The warning is about outputs that are views of each other, which nothing changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Blocks of the stages: modules with children inside of an nn.Sequential."""
    for child in module.children():
        encoder = hasattr(child, "feature_dim")
        if isinstance(module, nn.Sequential) and not encoder and not isinstance(child, nn.Sequential) and list(child.children()):
            yield child
        else:
            yield from _blocks(child)


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether the tensor is a DTensor."""
    return hasattr(tensor, "full_tensor")


def own(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory; a whole tensor itself."""
    return tensor.to_local() if is_split(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The unsplit tensor in host memory, on every rank. All ranks must call it. A whole tensor is returned unchanged."""
    return tensor.full_tensor().cpu() if is_split(tensor) else tensor


def split_like(pattern: Tensor, tensor: Tensor) -> Tensor:
    """Splits `tensor`, which is whole on every rank, like `pattern`."""
    if not is_split(pattern):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Norms [n] of the unsplit tensors; either all tensors are split or none. Split ones cost one sum over ranks."""
    found = torch.stack(torch._foreach_norm([own(t) for t in tensors]))
    first = tensors[0]
    if not is_split(first):
        return found
    squares = found.square()
    dist.all_reduce(squares, group=first.device_mesh.get_group())
    return squares.sqrt()


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Norm of all tensors as one vector."""
    kept, split = [t for t in tensors if not is_split(t)], [t for t in tensors if is_split(t)]
    if not split:
        norm: Tensor = torch.nn.utils.get_total_norm(kept)
    else:
        norm = torch.linalg.vector_norm(torch.cat([norms(of) for of in (kept, split) if of]))
    return norm
