"""Colour changes of views in batches: jitter, grey, blur, solarise, then normalisation.

`colours` defines each change; the order is the published one (Caron et al. 2020, appendix A). Views in CPU memory go through the
compiled kernel, views on an accelerator through the tensor operations of this file. The result is a function of the views and
their parameters; an image's result does not depend on the other images. Pixels are planes float32 [3, N, H, W], so that each
colour is contiguous. Parameters stay on the CPU, which decides which images need what.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from swav_platform.images.views import colour_kernel, colours
from swav_platform.images.views.colours import BRIGHTNESS, CONTRAST, HUE, MEAN, REACH, SATURATION, STD
from swav_platform.images.views.params import COLUMN, ORDERS

__all__ = ["MEAN", "STD", "apply", "normalise"]

_TENSORS = SimpleNamespace(number=float, clip=lambda x: x.clamp(0, 1), least=torch.minimum, most=torch.maximum, where=torch.where)
_luma, _blend, _turn_hue, _solarise = colours.formulas(_TENSORS)
_NOTHING = 4  # after the four changes of jitter
# Rows are read-only memory, and this file never writes into them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writ")

_BLOCK = 2**19  # numbers processed at once, so that they fit the cache of a core


@torch.no_grad()
def apply(views: Tensor | np.ndarray, params: Tensor | np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    """Changed and normalised views [V * R, 3, H, W] of a dtype, in channels_last memory, view by view.

    views: uint8 [V, R, H, W, 3] on any device; params: float32 [V, R, P] with the columns of params.PARAMS, best
    left on the CPU. Whatever the dtype, colours are changed in float32.
    """
    pixels = torch.as_tensor(views)
    if pixels.device.type == "cpu":
        numbers = colour_kernel.to_float(pixels.contiguous().numpy(), torch.as_tensor(params).cpu().numpy())
        return torch.from_numpy(numbers).to(dtype).permute(0, 3, 1, 2)
    return by_tensors(pixels, params, dtype)


@torch.no_grad()
def by_tensors(views: Tensor, params: Tensor | np.ndarray, dtype: torch.dtype) -> Tensor:
    """`apply` with tensor operations, on any device."""
    pixels = views.flatten(0, 1)
    out = torch.empty(pixels.shape, dtype=dtype, device=pixels.device)
    for part, planes in _changed(pixels, params):
        for plane, mean, std in zip(planes, MEAN, STD, strict=True):
            plane.sub_(mean).div_(std)
        out[part] = planes.permute(1, 2, 3, 0)
    return out.permute(0, 3, 1, 2)


@torch.no_grad()
def normalise(views: Tensor | np.ndarray) -> Tensor:
    """Unchanged views uint8 [V, R, H, W, 3], normalised: float32 [V * R, 3, H, W] in channels_last memory."""
    pixels = torch.as_tensor(views).flatten(0, 1)
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def _changed(pixels: Tensor, params: Tensor | np.ndarray) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the N images of uint8 [N, H, W, 3], each with its changed planes float32 [3, n, H, W]."""
    columns = torch.as_tensor(params).flatten(0, 1).cpu()
    step = len(pixels) if pixels.is_cuda else max(1, _BLOCK // pixels[0].numel())
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        planes = pixels[part].permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        _jitter(planes, columns[part])
        _change(planes, columns[part, COLUMN["grey"]], _grey)
        _blur(planes, columns[part, COLUMN["blur_sigma"]])
        _change(planes, columns[part, COLUMN["solarise"]], _solarise)
        yield part, planes


def _change(x: Tensor, flag: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    chosen = flag.nonzero().flatten().to(x.device)
    if len(chosen):
        x[:, chosen] = change(x[:, chosen])


def _jitter(x: Tensor, columns: Tensor) -> None:
    """Brightness, contrast, saturation and hue of planes [3, N, H, W], in place, in each image's own order.

    The first three changes share one formula. Images that are not due for one of them are blended with a factor of 1, which
    leaves them exactly as they are.
    """
    jitter = columns[:, COLUMN["jitter"]] > 0
    if not jitter.any():
        return
    orders = torch.tensor(ORDERS)[columns[:, COLUMN["order"]].long()]
    orders[~jitter] = _NOTHING
    factors = columns[:, COLUMN["brightness"] : COLUMN["hue"] + 1]
    for place in range(4):
        change = orders[:, place]
        factor = factors.gather(1, change.clamp(max=HUE)[:, None])[:, 0]
        if (change <= SATURATION).any():
            x.copy_(_blend(x, _other(x, change), _each(torch.where(change <= SATURATION, factor, 1.0), x)))
        turning = ((change == HUE) & (factor != 0)).nonzero().flatten()
        if len(turning):
            there = turning.to(x.device)
            x[:, there] = torch.stack(_turn_hue(*x[:, there], _each(factor[turning], x)))


def _other(x: Tensor, change: Tensor) -> Tensor:
    """[N, H, W]: what each image is blended with: black, its mean grey or its grey."""
    if (change <= BRIGHTNESS).all():
        return torch.zeros_like(x[0])
    grey = _luma(*x)
    mean = grey.mean((1, 2), keepdim=True)
    other: Tensor = grey * _each((change == SATURATION).float(), x) + mean * _each((change == CONTRAST).float(), x)
    return other


def _each(numbers: Tensor, x: Tensor) -> Tensor:
    """One number for each image, [N] -> [N, 1, 1], on the device of x."""
    return numbers[:, None, None].to(x.device)


def _grey(x: Tensor) -> Tensor:
    grey: Tensor = _luma(*x)
    return grey.expand_as(x)


def _blur(x: Tensor, sigma: Tensor) -> None:
    """Gaussian blur of planes [3, N, H, W], in place; sigma [N] in pixels, 0 for none; edge pixels are repeated."""
    chosen = sigma.nonzero().flatten()
    if not len(chosen):
        return
    there = chosen.to(x.device)
    rows = gaussian(sigma[chosen].to(x.device), x.shape[2])
    columns = rows if x.shape[2] == x.shape[3] else gaussian(sigma[chosen].to(x.device), x.shape[3])
    with torch.autocast(x.device.type, enabled=False):
        for plane in x:
            plane[there] = rows.bmm(plane[there]).bmm(columns.mT)


def gaussian(sigma: Tensor, size: int) -> Tensor:
    """Matrices float32 [n, size, size] that blur a line of `size` pixels, whose first and last are repeated.

    Dense matrices make the blur two matrix products for every sigma: as fast as short kernels on a CPU, faster on a GPU.
    """
    distance = torch.arange(2 * size + 1, device=sigma.device, dtype=torch.float32)
    weight = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2) * (distance <= torch.ceil(REACH * sigma[:, None]))
    weight /= 2 * weight.sum(1, keepdim=True) - 1
    beyond = weight.flip(1).cumsum(1).flip(1)[:, 1 : size + 1]  # [n, i]: the weight more than i away, on one side
    place = torch.arange(size, device=sigma.device)
    matrix = weight[:, (place[:, None] - place).abs()]
    matrix[:, :, 0] += beyond
    matrix[:, :, -1] += beyond.flip(1)
    return matrix
