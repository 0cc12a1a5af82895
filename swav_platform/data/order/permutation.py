"""Keyed hashes and permutations of integers, on which all shuffling of the plan is based.

The numbers must never change, on any machine. numpy.random gives no such guarantee between versions, so it is not used here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 2**64 - 1
_ROUNDS = 6

Uint64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]


def key(*parts: int) -> int:
    """A 64-bit key from integers; the order of the parts matters."""
    state = 0
    for part in parts:
        state = _mix_int((state ^ (part & _MASK)) + _GOLDEN & _MASK)
    return state


def hashes(key: int, values: Uint64s) -> Uint64s:
    """uint64 hash of each value under `key`: the finaliser of splitmix64 (Steele et al. 2014)."""
    x = values * np.uint64(_GOLDEN) + np.uint64(key)  # wraps modulo 2**64
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MULTIPLY[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MULTIPLY[1])
    return x ^ (x >> np.uint64(31))


def shuffled(key: int, count: int) -> Int64s:
    """The numbers 0 .. count-1, ordered by their hashes."""
    return np.argsort(hashes(key, np.arange(count, dtype=np.uint64)), kind="stable")


class Permutation:
    """A permutation of 0 .. size-1 with random access in constant time.

    A Feistel network over pairs of digits of base ceil(sqrt(size)), with cycle walking (Black and Rogaway 2002,
    "Ciphers with Arbitrary Finite Domains", methods 2 and 3).
    """

    def __init__(self, key_parts: Sequence[int], size: int) -> None:
        self._size = size
        self._base = np.uint64(_ceil_sqrt(size))
        self._keys = [key(*key_parts, number) for number in range(_ROUNDS)]

    def forward(self, places: Int64s) -> Int64s:
        """int64 [m]: the values at places 0 .. size-1."""
        return self._walk(places, self._encrypt)

    def inverse(self, values: Int64s) -> Int64s:
        """int64 [m]: the places of values 0 .. size-1."""
        return self._walk(values, self._decrypt)

    def _walk(self, start: Int64s, step: Callable[[Uint64s], Uint64s]) -> Int64s:
        x = step(np.asarray(start, dtype=np.uint64))
        while (outside := x >= self._size).any():
            x[outside] = step(x[outside])
        return x.astype(np.int64)

    def _encrypt(self, x: Uint64s) -> Uint64s:
        left, right = x // self._base, x % self._base
        for round_key in self._keys:
            left, right = right, (left + hashes(round_key, right) % self._base) % self._base
        return left * self._base + right

    def _decrypt(self, x: Uint64s) -> Uint64s:
        left, right = x // self._base, x % self._base
        for round_key in reversed(self._keys):
            left, right = (right + self._base - hashes(round_key, left) % self._base) % self._base, left
        return left * self._base + right


def _ceil_sqrt(size: int) -> int:
    root = isqrt(size)
    return root if root * root == size else root + 1


def _mix_int(x: int) -> int:
    x = (x ^ x >> 30) * _MULTIPLY[0] & _MASK
    x = (x ^ x >> 27) * _MULTIPLY[1] & _MASK
    return x ^ x >> 31
