"""Random numbers that are a function of the seed and of a position of the stream.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") over whole arrays: the key is the seed, the counter
is (block, view, position). NumPy's own Philox needs a generator object for each position, whose setup costs more than the numbers.
"""

from __future__ import annotations

import numpy as np

_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_BUMP = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Four random 32-bit words, as uint64 arrays, for each counter; the parts of the counter broadcast."""
    a, b, c, d = counter
    first, second = key
    for _ in range(10):
        left, right = a * _MULTIPLY[0], c * _MULTIPLY[1]
        a = (right >> _HALF) ^ b ^ np.uint64(first)
        c = (left >> _HALF) ^ d ^ np.uint64(second)
        b, d = right & _LOW, left & _LOW
        first, second = (first + _BUMP[0]) & 0xFFFFFFFF, (second + _BUMP[1]) & 0xFFFFFFFF
    return a, b, c, d


def uniforms(seed: int, position: int | np.ndarray, views: int, slots: int) -> np.ndarray:
    """Uniform numbers in (0, 1), float64 [views, slots], for a position; [R, views, slots] for positions int64 [R].

    Number (v, s) of a position does not depend on how many positions, views and slots are requested.
    """
    where = np.asarray(position, dtype=np.uint64)[..., None, None]
    view = np.arange(views, dtype=np.uint64)[:, None]
    block = np.arange(-(-slots // 4), dtype=np.uint64)
    words = philox((block, view, where & _LOW, where >> _HALF), (seed & 0xFFFFFFFF, seed >> 32))
    numbers = np.stack(np.broadcast_arrays(*words), axis=-1)
    numbers = numbers.reshape(*numbers.shape[:-2], -1)[..., :slots]
    return (numbers + 0.5) * 2.0**-32
