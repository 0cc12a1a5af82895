"""Resizes a box of an image with antialiasing, mirrors it if asked, and writes it into its place in the row.

Pillow's resampling (a triangle or a cubic as wide as the reduction; Turkowski 1990), in float32 and rounded once. The filter sees only
the box, as if it had been cut out first (torchvision's order). Rows come before columns, because whole lines of bytes can be added
in place; a line stays in the first-level cache.
"""

from __future__ import annotations

import math

import numpy as np

from swav_platform.images.views.compiled import inlined, kernel

F = np.float32
U = np.uint64  # unsigned indices: numba omits the test for negative ones, and LLVM recognises adjacent elements


@inlined
def _triangle(x):  # type: ignore[no-untyped-def]
    return max(1.0 - abs(x), 0.0)


@inlined
def _cubic(x):  # type: ignore[no-untyped-def]
    """Keys' cubic with a = -0.5, as in Pillow."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0


@inlined
def _filter(begin, extent, limit, size, bicubic):  # type: ignore[no-untyped-def]
    """For each of `size` outputs the first source, int64 [size], and weights float32 [size, taps] that sum to 1.

    Sources are the pixels, of `limit`, that [begin, begin + extent) touches.
    """
    lowest, highest = int(begin), min(math.ceil(begin + extent), limit)
    scale = extent / size
    wide = max(scale, 1.0)
    support = (2.0 if bicubic else 1.0) * wide
    taps = min(math.ceil(2 * support), highest - lowest)
    first, weights = np.empty(size, np.int64), np.empty((size, taps), np.float32)
    exact = np.empty(taps, np.float64)
    for place in range(size):
        centre = begin + (place + 0.5) * scale
        low, high = max(int(centre - support + 0.5), lowest), min(int(centre + support + 0.5), highest)
        start = min(low, highest - taps)
        total = 0.0
        for tap in range(taps):
            x = (start + tap - centre + 0.5) / wide
            inside = low <= start + tap < high
            exact[tap] = (_cubic(x) if bicubic else _triangle(x)) if inside else 0.0
            total += exact[tap]
        first[place] = start
        for tap in range(taps):  # a loop, because an array of the quotients would be allocated for every output
            weights[place, tap] = exact[tap] / total
    return first, weights


@inlined
def _mix_rows(rows, w, line):  # type: ignore[no-untyped-def]
    """line[j] = sum of w[k] * rows[k, j], three rows at a time."""
    taps, width = rows.shape
    done = (taps - 1) % 3 + 1
    a, b, c = rows[0], rows[min(1, taps - 1)], rows[min(2, taps - 1)]
    if done == 1:
        for j in range(width):
            line[j] = w[0] * F(a[j])
    elif done == 2:
        for j in range(width):
            line[j] = w[0] * F(a[j]) + w[1] * F(b[j])
    else:
        for j in range(width):
            line[j] = w[0] * F(a[j]) + w[1] * F(b[j]) + w[2] * F(c[j])
    for k in range(done, taps, 3):
        u, v, t = w[k], w[k + 1], w[k + 2]
        a, b, c = rows[k], rows[k + 1], rows[k + 2]
        for j in range(width):
            line[j] += u * F(a[j]) + v * F(b[j]) + t * F(c[j])


@inlined
def _two(line, j, u, v):  # type: ignore[no-untyped-def]
    """Four adjacent numbers from j on, one SIMD register: the weighted sum of two pixels."""
    return (
        u * line[j] + v * line[j + U(3)],
        u * line[j + U(1)] + v * line[j + U(4)],
        u * line[j + U(2)] + v * line[j + U(5)],
        u * line[j + U(3)] + v * line[j + U(6)],
    )


@inlined
def _three(line, j, u, v, w):  # type: ignore[no-untyped-def]
    return (
        u * line[j] + v * line[j + U(3)] + w * line[j + U(6)],
        u * line[j + U(1)] + v * line[j + U(4)] + w * line[j + U(7)],
        u * line[j + U(2)] + v * line[j + U(5)] + w * line[j + U(8)],
        u * line[j + U(3)] + v * line[j + U(6)] + w * line[j + U(9)],
    )


@inlined
def _four(line, j, t, u, v, w):  # type: ignore[no-untyped-def]
    return (
        t * line[j] + u * line[j + U(3)] + v * line[j + U(6)] + w * line[j + U(9)],
        t * line[j + U(1)] + u * line[j + U(4)] + v * line[j + U(7)] + w * line[j + U(10)],
        t * line[j + U(2)] + u * line[j + U(5)] + v * line[j + U(8)] + w * line[j + U(11)],
        t * line[j + U(3)] + u * line[j + U(6)] + v * line[j + U(9)] + w * line[j + U(12)],
    )


@inlined
def _put(out, j, four):  # type: ignore[no-untyped-def]
    """Writes four numbers. The fourth belongs to the next pixel, which overwrites it."""
    out[j], out[j + U(1)], out[j + U(2)], out[j + U(3)] = four


@inlined
def _mix_columns(upper, lower, first, weights, flip, above, below):  # type: ignore[no-untyped-def]
    """above[3x + c] = sum of weights[x, k] * upper[3(first[x] + k) + c]; the same from `lower` to `below`.

    Two lines at a time, because they share positions and weights.
    """
    size, taps = U(weights.shape[0]), U(weights.shape[1])
    place = U(0)
    for x in range(size):
        y = size - U(1) - x if flip else x
        j = U(first[y] * 3)
        if taps == U(2):
            u, v = weights[y, U(0)], weights[y, U(1)]
            _put(above, place, _two(upper, j, u, v))
            _put(below, place, _two(lower, j, u, v))
        elif taps == U(3):
            u, v, w = weights[y, U(0)], weights[y, U(1)], weights[y, U(2)]
            _put(above, place, _three(upper, j, u, v, w))
            _put(below, place, _three(lower, j, u, v, w))
        elif taps == U(4):
            t, u, v, w = weights[y, U(0)], weights[y, U(1)], weights[y, U(2)], weights[y, U(3)]
            _put(above, place, _four(upper, j, t, u, v, w))
            _put(below, place, _four(lower, j, t, u, v, w))
        else:
            a = b = c = d = e = f = g = h = F(0)
            for k in range(taps):
                w = weights[y, k]
                a += w * upper[j]
                b += w * upper[j + U(1)]
                c += w * upper[j + U(2)]
                d += w * upper[j + U(3)]
                e += w * lower[j]
                f += w * lower[j + U(1)]
                g += w * lower[j + U(2)]
                h += w * lower[j + U(3)]
                j += U(3)
            _put(above, place, (a, b, c, d))
            _put(below, place, (e, f, g, h))
        place += U(3)


@inlined
def _round(numbers, out):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] = np.uint8(np.int32(min(max(numbers[j], F(0)), F(255)) + F(0.5)))


@kernel("void(uint8[:, ::1], float64, float64, float64, float64, boolean, boolean, uint8[:, :, ::1])", neighbours=True)
def resize(pixels, top, left, height, width, flip, bicubic, out):  # type: ignore[no-untyped-def]
    """pixels: uint8 [H, W * 3], C order; out: uint8 [h, w, 3], C order. The box must lie inside the image."""
    rows, columns, _ = out.shape
    first_row, row_weights = _filter(top, height, len(pixels), rows, bicubic)
    first_column, column_weights = _filter(left, width, pixels.shape[1] // 3, columns, bicubic)
    taps = row_weights.shape[1]
    begin, end = int(left) * 3, min(math.ceil(left + width) * 3, pixels.shape[1])
    first_column -= int(left)
    lines, mixed = np.zeros((2, end - begin + 1), np.float32), np.empty((2, columns * 3 + 1), np.float32)
    flat = out.reshape(rows, columns * 3)
    for y in range(0, rows, 2):
        z = min(y + 1, rows - 1)
        _mix_rows(pixels[first_row[y] : first_row[y] + taps, begin:end], row_weights[y], lines[0])
        _mix_rows(pixels[first_row[z] : first_row[z] + taps, begin:end], row_weights[z], lines[1])
        _mix_columns(lines[0], lines[1], first_column, column_weights, flip, mixed[0], mixed[1])
        _round(mixed[0], flat[y])
        _round(mixed[1], flat[z])
