"""Philox against its published answers, and what makes it a function of the position."""

from __future__ import annotations

import numpy as np
import pytest

from swav_platform.images.views.randomness import philox, uniforms

# Random123, kat_vectors: philox4x32-10, counter, key, answer.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_numbers(counter: str, key: str, answer: str) -> None:
    words = [np.array([int(word, 16)], np.uint64) for word in counter.split()]
    first, second = (int(word, 16) for word in key.split())
    got = philox((words[0], words[1], words[2], words[3]), (first, second))
    assert [f"{int(word[0]):08x}" for word in got] == answer.split()


def test_a_number_depends_on_seed_position_view_and_slot_only() -> None:
    many = uniforms(7, np.array([5, 2**40 + 3, 9]), 6, 33)
    assert many.shape == (3, 6, 33)
    np.testing.assert_array_equal(many[1], uniforms(7, 2**40 + 3, 6, 33))
    np.testing.assert_array_equal(many[2, :2, :5], uniforms(7, 9, 2, 5))
    for other in (uniforms(8, 5, 6, 33), uniforms(7 + 2**32, 5, 6, 33), uniforms(7, 5 + 2**32, 6, 33)):
        assert not np.isclose(many[0], other).any()
    assert len(np.unique(many)) == many.size


def test_numbers_are_uniform_and_never_0_or_1() -> None:
    numbers = uniforms(31, np.arange(2000), 4, 12).ravel()
    assert 0 < numbers.min() < numbers.max() < 1
    counts = np.histogram(numbers, 50, (0, 1))[0]
    expected = numbers.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 100  # chi-square, 49 degrees: mean 49, deviation 10
