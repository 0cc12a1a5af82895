"""Colour changes on one CPU core: at most two passes over the pixels of a view, line by line.

Lines are planes float32 [3, W] that stay in the first-level cache. Contrast needs the image's mean grey, which separates the passes:
the first makes the changes before contrast, the second all others, blur and rounding or normalisation included. `change` is the
only kernel.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from swav_platform.images.views.colours import CONTRAST, HUE, MEAN, REACH, SATURATION, STD, Colours, formulas
from swav_platform.images.views.compiled import inlined, kernel
from swav_platform.images.views.params import COLUMN, ORDERS

F = np.float32
U = np.uint64  # unsigned indices: numba omits the test for negative ones, and LLVM recognises adjacent elements


@inlined
def _clip(x):  # type: ignore[no-untyped-def]
    return min(max(x, F(0)), F(1))


@inlined
def _where(condition, yes, no):  # type: ignore[no-untyped-def]
    return yes if condition else no


@inlined
def _least(a, b):  # type: ignore[no-untyped-def]
    return min(a, b)


@inlined
def _most(a, b):  # type: ignore[no-untyped-def]
    return max(a, b)


_CORE = SimpleNamespace(number=F, clip=_clip, least=_least, most=_most, where=_where)
_luma, _blend, _turn_hue, _solarise = Colours(*(inlined(formula) for formula in formulas(_CORE)))

_ORDERS = np.array(ORDERS)
_LEVEL = F(1 / 255)
_MEAN, _SCALE = tuple(F(mean) for mean in MEAN), tuple(F(1 / std) for std in STD)
_JITTER, _ORDER, _GREY, _SIGMA, _SOLARISE = (COLUMN[n] for n in ("jitter", "order", "grey", "blur_sigma", "solarise"))
_FACTOR = COLUMN["brightness"]  # and the three after it, in the order of the constants


@inlined
def _jitter(line, change, factor, mean):  # type: ignore[no-untyped-def]
    """One change of a line [3, W], in place."""
    red, green, blue = line[0], line[1], line[2]
    if change == HUE:
        if factor != F(0):
            for x in range(red.size):
                red[x], green[x], blue[x] = _turn_hue(red[x], green[x], blue[x], factor)
    elif change == SATURATION:
        for x in range(red.size):
            grey = _luma(red[x], green[x], blue[x])
            red[x] = _blend(red[x], grey, factor)
            green[x] = _blend(green[x], grey, factor)
            blue[x] = _blend(blue[x], grey, factor)
    else:
        other = mean if change == CONTRAST else F(0)
        for x in range(red.size):
            red[x] = _blend(red[x], other, factor)
            green[x] = _blend(green[x], other, factor)
            blue[x] = _blend(blue[x], other, factor)


@inlined
def _read(pixels, line):  # type: ignore[no-untyped-def]
    red, green, blue = line[0], line[1], line[2]
    for x in range(U(red.size)):
        red[x] = F(pixels[U(3) * x]) * _LEVEL
        green[x] = F(pixels[U(3) * x + U(1)]) * _LEVEL
        blue[x] = F(pixels[U(3) * x + U(2)]) * _LEVEL


@inlined
def _start(pixels, p, order, until, planes):  # type: ignore[no-untyped-def]
    """Writes the changes before contrast to planes [H, 3, W]; returns the mean grey after them."""
    sums = np.zeros(planes.shape[2], np.float32)
    total = 0.0
    for y in range(len(pixels)):
        line = planes[y]
        _read(pixels[y], line)
        for place in range(until):
            _jitter(line, order[place], p[_FACTOR + order[place]], F(0))
        red, green, blue = line[0], line[1], line[2]
        for x in range(sums.size):
            sums[x] += _luma(red[x], green[x], blue[x])
    for x in range(sums.size):
        total += sums[x]
    return F(total / (len(pixels) * sums.size))


@inlined
def _rest(line, p, order, done, mean):  # type: ignore[no-untyped-def]
    for place in range(done, 4):
        _jitter(line, order[place], p[_FACTOR + order[place]], mean)
    if p[_GREY] > F(0):
        red, green, blue = line[0], line[1], line[2]
        for x in range(red.size):
            red[x] = green[x] = blue[x] = _luma(red[x], green[x], blue[x])


@inlined
def _gaussian(sigma):  # type: ignore[no-untyped-def]
    """Weights of the centre and of one side, float32 [1 + reach]."""
    reach = math.ceil(REACH * sigma)
    exact = np.empty(reach + 1, np.float64)
    for k in range(reach + 1):
        exact[k] = math.exp(-0.5 * (k / sigma) ** 2)
    return (exact / (2 * exact.sum() - 1)).astype(np.float32)


@inlined
def _blur_down(planes, y, weights, line):  # type: ignore[no-untyped-def]
    """line [3 W] = weighted sum of the lines around y of planes [H, 3 W]; the first and last line are repeated."""
    height, last = len(planes), len(weights) - 1
    middle = planes[y]
    for x in range(line.size):
        line[x] = weights[0] * middle[x]
    for k in range(1, last, 2):
        a, b = planes[max(y - k, 0)], planes[min(y + k, height - 1)]
        c, d = planes[max(y - k - 1, 0)], planes[min(y + k + 1, height - 1)]
        u, v = weights[k], weights[k + 1]
        for x in range(line.size):
            line[x] += u * (a[x] + b[x]) + v * (c[x] + d[x])
    if last % 2 == 1:
        a, b, u = planes[max(y - last, 0)], planes[min(y + last, height - 1)], weights[last]
        for x in range(line.size):
            line[x] += u * (a[x] + b[x])


@inlined
def _blur_across(line, weights, padded):  # type: ignore[no-untyped-def]
    """The same along the line, in place; padded: float32 [W + 2 reach]."""
    reach, width = len(weights) - 1, line.shape[1]
    for c in range(3):
        to = line[c]
        padded[:reach] = to[0]
        padded[reach : reach + width] = to
        padded[reach + width :] = to[width - 1]
        middle = padded[reach : reach + width]
        for x in range(width):
            to[x] = weights[0] * middle[x]
        for k in range(1, reach, 2):
            a, b = padded[reach - k : reach - k + width], padded[reach + k : reach + k + width]
            d, e = padded[reach - k - 1 : reach - k - 1 + width], padded[reach + k + 1 : reach + k + 1 + width]
            u, v = weights[k], weights[k + 1]
            for x in range(width):
                to[x] += u * (a[x] + b[x]) + v * (d[x] + e[x])
        if reach % 2 == 1:
            a, b, u = padded[:width], padded[2 * reach : 2 * reach + width], weights[reach]
            for x in range(width):
                to[x] += u * (a[x] + b[x])


@inlined
def _store(line, normalised, floats, numbers):  # type: ignore[no-untyped-def]
    red, green, blue = line[0], line[1], line[2]
    if normalised:
        for x in range(U(red.size)):
            floats[U(3) * x] = (red[x] - _MEAN[0]) * _SCALE[0]
            floats[U(3) * x + U(1)] = (green[x] - _MEAN[1]) * _SCALE[1]
            floats[U(3) * x + U(2)] = (blue[x] - _MEAN[2]) * _SCALE[2]
    else:
        for x in range(U(red.size)):
            numbers[U(3) * x] = np.uint8(np.int32(red[x] * F(255) + F(0.5)))
            numbers[U(3) * x + U(1)] = np.uint8(np.int32(green[x] * F(255) + F(0.5)))
            numbers[U(3) * x + U(2)] = np.uint8(np.int32(blue[x] * F(255) + F(0.5)))


@kernel("void(uint8[:, :, ::1], float32[:, ::1], boolean, float32[:, :, ::1], uint8[:, :, ::1])")
def change(views, params, normalised, floats, numbers):  # type: ignore[no-untyped-def]
    """views: uint8 [N, H, W, 3]; params: float32 [N, P] with the columns of params.PARAMS.

    Writes either floats [N, H, W, 3], changed and normalised, or numbers [N, H, W, 3], changed and rounded to bytes. `numbers` may be
    the views themselves.
    """
    _, height, width = views.shape
    width //= 3
    planes, line = np.empty((height, 3, width), np.float32), np.empty((3, width), np.float32)
    flat_planes, flat = planes.reshape(height, 3 * width), line.reshape(3 * width)
    for n in range(len(views)):
        pixels, p = views[n], params[n]
        order = _ORDERS[int(p[_ORDER])]
        done, mean = 4, F(0)
        if p[_JITTER] > F(0):
            done = 0
            while order[done] != CONTRAST:
                done += 1
            mean = _start(pixels, p, order, done, planes)
        else:
            for y in range(height):
                _read(pixels[y], planes[y])
        sigma = p[_SIGMA]
        weights = _gaussian(sigma if sigma > F(0) else F(1))
        padded = np.empty(width + 2 * len(weights) - 2, np.float32)
        if sigma > F(0):
            for y in range(height):
                _rest(planes[y], p, order, done, mean)
        for y in range(height):
            if sigma > F(0):
                _blur_down(flat_planes, y, weights, flat)
                _blur_across(line, weights, padded)
            else:
                _rest(planes[y], p, order, done, mean)
                line[:] = planes[y]
            if p[_SOLARISE] > F(0):
                for x in range(flat.size):
                    flat[x] = _solarise(flat[x])
            _store(line, normalised, floats[n, y] if normalised else floats[0, 0], numbers[0, 0] if normalised else numbers[n, y])


def to_uint8(views: np.ndarray, params: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Changed views rounded to bytes: all uint8 [V, R, H, W, 3], params float32 [V, R, P]. out may be the views."""
    change(_lines(views), _columns(params), False, np.empty((1, 1, 3), np.float32), _lines(out))
    return out


def to_float(views: np.ndarray, params: np.ndarray) -> np.ndarray:
    """Changed and normalised views, float32 [V * R, H, W, 3], of views uint8 [V, R, H, W, 3]."""
    out = np.empty((views.shape[0] * views.shape[1], *views.shape[2:]), np.float32)
    change(_lines(views), _columns(params), True, out.reshape(*out.shape[:2], -1), np.empty((1, 1, 3), np.uint8))
    return out


def _lines(views: np.ndarray) -> np.ndarray:
    """[V, R, H, W, 3] -> [V * R, H, W * 3] in the same memory."""
    views_, row, height, width, _ = views.shape
    lines = views.reshape(views_ * row, height, width * 3)
    assert np.shares_memory(lines, views)
    return lines


def _columns(params: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(params, np.float32).reshape(-1, params.shape[-1])
