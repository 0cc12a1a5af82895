"""Colour changes of views, batched: jitter, grey, blur, solarise, then normalisation.

The formulas are torchvision's for float images in [0, 1] (each change clamps), the order is the published one
(Caron et al. 2020, appendix A). Everything is a function of the views and their parameters, on any device, and
an image's result does not depend on the images beside it.
Inside, pixels are planes float32 [3, N, H, W]: each colour is contiguous. Parameters stay on the CPU, where it
is decided which images need what.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from swav_platform.images.params import COLUMN, ORDERS

MEAN = (0.485, 0.456, 0.406)
STD = (0.228, 0.224, 0.225)
"""The published code's; 0.229 is everybody else's."""

_LUMA = (0.2989, 0.587, 0.114)
_CONTRAST, _SATURATION, _HUE, _NOTHING = 1, 2, 3, 4
# Rows are read-only memory, and nothing here writes into them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writ")

_BLOCK = 2**19  # numbers worked on at once: what fits the cache of a core


@torch.no_grad()
def apply(views: Tensor | np.ndarray, params: Tensor | np.ndarray) -> Tensor:
    """Changed and normalised views, float32 [V * R, 3, H, W] in channels_last memory, view by view.

    views: uint8 [V, R, H, W, 3] on any device; params: float32 [V, R, P] with the columns of params.PARAMS, best
    left on the CPU.
    """
    pixels = torch.as_tensor(views).flatten(0, 1)
    out = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    for part, planes in _changed(pixels, params):
        for plane, mean, std in zip(planes, MEAN, STD, strict=True):
            plane.sub_(mean).div_(std)
        out[part] = planes.permute(1, 2, 3, 0)
    return out.permute(0, 3, 1, 2)


@torch.no_grad()
def to_uint8(views: np.ndarray, params: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Changed views rounded back to uint8 [V, R, H, W, 3], for rows whose colours are changed where they are made.

    out may be the views themselves.
    """
    out = np.empty_like(views) if out is None else out
    pixels, target = torch.from_numpy(views).flatten(0, 1), torch.from_numpy(out).flatten(0, 1)
    for part, planes in _changed(pixels, params):
        target[part] = planes.mul_(255).round_().permute(1, 2, 3, 0)
    return out


@torch.no_grad()
def normalise(views: Tensor | np.ndarray) -> Tensor:
    """Views uint8 [V, R, H, W, 3] as they are, normalised: float32 [V * R, 3, H, W] in channels_last memory."""
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

    The first three are one formula, a blend of the image with black, its mean grey or its grey; images whose
    turn it is not are blended with a factor of 1, which leaves them exactly as they are.
    """
    jitter = columns[:, COLUMN["jitter"]] > 0
    if not jitter.any():
        return
    orders = torch.tensor(ORDERS)[columns[:, COLUMN["order"]].long()]
    orders[~jitter] = _NOTHING
    factors = columns[:, COLUMN["brightness"] : COLUMN["hue"] + 1]
    for place in range(4):
        change = orders[:, place]
        factor = factors.gather(1, change.clamp(max=_HUE)[:, None])[:, 0]
        _blend(x, change, torch.where(change < _HUE, factor, 1.0))
        turning = ((change == _HUE) & (factor != 0)).nonzero().flatten()
        if len(turning):
            there = turning.to(x.device)
            x[:, there] = _turn_hue(x[:, there], factor[turning].to(x.device))


def _blend(x: Tensor, change: Tensor, factor: Tensor) -> None:
    """x * factor + (1 - factor) * other, clamped, in place."""
    to_grey, to_mean, keep = (
        (weight[:, None, None]).to(x.device)
        for weight in ((1 - factor) * (change == _SATURATION), (1 - factor) * (change == _CONTRAST), factor)
    )
    other = _luma(x)
    mean = other.mean((1, 2), keepdim=True)
    other.mul_(to_grey).add_(mean.mul_(to_mean))
    torch.addcmul(other, x, keep, out=x).clamp_(0, 1)


def _luma(x: Tensor) -> Tensor:
    """Grey [N, H, W] of planes [3, N, H, W]."""
    return (x[0] * _LUMA[0]).add_(x[1], alpha=_LUMA[1]).add_(x[2], alpha=_LUMA[2])


def _grey(x: Tensor) -> Tensor:
    return _luma(x).expand_as(x)


def _solarise(x: Tensor) -> Tensor:
    return torch.where(x >= 0.5, 1 - x, x)


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Planes [3, n, H, W] with the hue of image i turned by turn[i] of a full circle; HSV value and chroma stay.

    RGB -> HSV -> RGB without the detour over saturation: with the hue in sixths of a circle, each colour is
    value - chroma + chroma * w, w a trapezium of the hue around that colour.
    """
    red, green, blue = x
    value = x.amax(0)
    chroma = value - x.amin(0)
    scale = chroma.clamp(min=1e-12).reciprocal_()
    hue = (red - green).mul_(scale).add_(4)
    hue = torch.where(value == green, (blue - red).mul_(scale).add_(2), hue)
    hue = torch.where(value == red, (green - blue).mul_(scale), hue)
    hue += 6 * turn[:, None, None]
    hue -= (hue / 6).floor_().mul_(6)
    out = torch.empty_like(x)
    torch.sub(hue, 3, out=out[0]).abs_().sub_(1)
    torch.sub(hue, 2, out=out[1]).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=out[2]).abs_().neg_().add_(2)
    return out.clamp_(0, 1).sub_(1).mul_(chroma).add_(value)


def _blur(x: Tensor, sigma: Tensor) -> None:
    """Gaussian blur of planes [3, N, H, W], in place; sigma [N] in pixels, 0 for none; edges are continued."""
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
    """Matrices float32 [n, size, size] that blur `size` pixels in a line, whose first and last go on for ever.

    As dense matrices the blur is two matrix products, whatever sigma is: as fast as short kernels on a CPU, faster
    on a GPU, and no kernel has to be cut off.
    """
    distance = torch.arange(2 * size + 1, device=sigma.device, dtype=torch.float32)
    weight = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    weight /= 2 * weight.sum(1, keepdim=True) - 1
    beyond = weight.flip(1).cumsum(1).flip(1)[:, 1 : size + 1]  # [n, i]: all that lies more than i away, on one side
    place = torch.arange(size, device=sigma.device)
    matrix = weight[:, (place[:, None] - place).abs()]
    matrix[:, :, 0] += beyond
    matrix[:, :, -1] += beyond.flip(1)
    return matrix
