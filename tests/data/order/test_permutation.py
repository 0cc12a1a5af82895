from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_platform.data.order.permutation import Permutation, hashes, key, shuffled


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64))
def test_permutation_and_inverse(size: int, seed: int) -> None:
    permutation = Permutation((seed, 1), size)
    everything = np.arange(size)
    there = permutation.forward(everything)
    assert sorted(there.tolist()) == everything.tolist()
    assert (permutation.inverse(there) == everything).all()


@pytest.mark.parametrize("size", [10**9 + 7, 2**40, 2**52 - 1])
def test_huge_sizes(size: int) -> None:
    permutation = Permutation((5,), size)
    places = np.array([0, 1, size // 2, size - 1])
    there = permutation.forward(places)
    assert ((there >= 0) & (there < size)).all()
    assert (permutation.inverse(there) == places).all()


def test_all_orders_of_three_are_about_equally_likely() -> None:
    orders = [tuple(Permutation((seed,), 3).forward(np.arange(3)).tolist()) for seed in range(600)]
    counts = [orders.count(order) for order in permutations(range(3))]
    assert min(counts) > 60, counts


def test_order_of_parts_matters() -> None:
    assert key(1, 2) != key(2, 1)
    assert key(1) != key(1, 0)


def test_hash_is_splitmix64() -> None:
    """The first outputs of the reference generator with seed 1234567."""
    numbers = np.arange(1, 4, dtype=np.uint64)
    assert hashes(1234567, numbers).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_shuffled_contains_each_number_once() -> None:
    assert sorted(shuffled(9, 1000).tolist()) == list(range(1000))
    assert shuffled(9, 1000).tolist() != shuffled(10, 1000).tolist()
